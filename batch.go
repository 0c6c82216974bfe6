package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// BatchConfig says how large batches are. The zero value is ready to use.
type BatchConfig struct {
	// Size is the most messages of a batch. 0 means 500.
	Size int
	// Bytes is the most bytes of a batch, counted like SubscriberConfig.MaxBufferedBytes. A
	// larger record has a batch of its own. 0 means 4 MiB.
	Bytes int
	// Wait is how long the first record of a batch waits for others. 0 means 100 ms. With
	// NoWait a batch has what is there.
	Wait time.Duration
	// Concurrency is how many batches of a subscription are with handlers at once. 0 means 1.
	// Records that are handled one after the other, as Ordering says, are never in two of them.
	Concurrency int
	// OnePartition makes each batch have records of one partition only.
	OnePartition bool
}

// NoWait is a BatchConfig.Wait of no time.
const NoWait time.Duration = -1

const (
	defaultBatchSize  = 500
	defaultBatchBytes = 4 << 20
	defaultBatchWait  = 100 * time.Millisecond
)

// Validate returns one error that joins every problem of the configuration.
func (c BatchConfig) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Size < 0 {
		bad("Size: %d: want 0 (500) or a positive number", c.Size)
	}
	if c.Bytes < 0 {
		bad("Bytes: %d: want 0 (4 MiB) or a positive number", c.Bytes)
	}
	if c.Wait < 0 && c.Wait != NoWait {
		bad("Wait: %v: want 0 (100ms), a positive duration or NoWait", c.Wait)
	}
	if c.Concurrency < 0 {
		bad("Concurrency: %d: want 0 (1) or a positive number", c.Concurrency)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("ackpolicy: bad BatchConfig: %w", errors.Join(errs...))
}

func (c *BatchConfig) setDefaults() {
	if c.Size == 0 {
		c.Size = defaultBatchSize
	}
	if c.Bytes == 0 {
		c.Bytes = defaultBatchBytes
	}
	if c.Wait == 0 {
		c.Wait = defaultBatchWait
	}
	if c.Concurrency == 0 {
		c.Concurrency = 1
	}
}

// BatchSubscriber is a Subscriber whose messages are batches. See Subscriber.Batches.
type BatchSubscriber struct {
	*Subscriber
	config BatchConfig
}

var (
	_ message.Subscriber           = (*BatchSubscriber)(nil)
	_ message.SubscribeInitializer = (*BatchSubscriber)(nil)
)

// Batches returns a subscriber for handlers of batches:
//
//	router.AddConsumerHandler("orders", "orders", subscriber.Batches(ackpolicy.BatchConfig{Size: 500}),
//		ackpolicy.HandleBatch(func(ctx context.Context, orders []*message.Message) error { … }))
//
// Each message that it subscribes to is a batch: see BatchFromMessage. Each record in a batch has
// its own fate, by the same policy, order and limits as without batches. MaxInFlight and
// MaxInFlightTotal do not apply: BatchConfig says how many records are in flight. ConfirmFirst
// does not work with batches.
//
// Closing it closes s.
func (s *Subscriber) Batches(config BatchConfig) *BatchSubscriber {
	return &BatchSubscriber{s, config}
}

// Subscribe is Subscriber.Subscribe for batches. It returns an error if BatchConfig is invalid.
func (s *BatchSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	config := s.config
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if s.Subscriber.config.Transactions != nil {
		return nil, errors.New("ackpolicy: batches are not supported with SubscriberConfig.Transactions: subscribe without Batches, or leave Transactions nil")
	}
	config.setDefaults()
	return s.subscribe(ctx, topic, &config)
}

// BatchError says which messages of a batch failed, by index, and why. A handler returns it to
// HandleBatch. The other messages have succeeded.
type BatchError map[int]error

func (e BatchError) Error() string {
	first := -1
	for i := range e {
		if first < 0 || i < first {
			first = i
		}
	}
	if first < 0 {
		return "no message of the batch failed"
	}
	return fmt.Sprintf("%d messages of the batch failed, first the one with index %d: %s", len(e), first, textOf(e[first]))
}

// FailedAt returns an error by which a handler tells HandleBatch that it stopped: the message
// with this index failed, those before it have succeeded, and those behind it were not
// handled. These are handed out again; that delivery does not count.
func FailedAt(index int, err error) error { return &failedAt{index, err} }

type failedAt struct {
	index int
	err   error
}

func (e *failedAt) Error() string {
	return fmt.Sprintf("the message with index %d failed: %s", e.index, textOf(e.err))
}

func (e *failedAt) Unwrap() error { return e.err }
