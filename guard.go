package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Code of the application may have bugs: functions in its configuration, methods of its
// errors, its logger. A panic in one may cost no more than the attempt of the record that
// it was called for.

// errGoexit is the error of code that called runtime.Goexit.
var errGoexit = errors.New("it ended its goroutine (runtime.Goexit)")

// panicked is a panic in the application's code.
type panicked struct {
	what  string
	value any
}

func (p *panicked) Error() string { return fmt.Sprintf("%s panicked: %v", p.what, p.value) }

// guard calls code of the application and returns a panic in it as an error. It cannot
// stop a runtime.Goexit, but calls exited, which may be nil, while the goroutine ends.
func guard(what string, code func(), exited func(error)) (err error) {
	returned := false
	defer func() {
		r := recover()
		switch {
		case returned:
		case r != nil:
			err = &panicked{what, r}
		case exited != nil:
			exited(fmt.Errorf("%s: %w", what, errGoexit))
		}
	}()
	code()
	returned = true
	return nil
}

// textOf returns err.Error() for errors of the application. Package fmt survives a panic in it.
func textOf(err error) string { return fmt.Sprint(err) }

// sound returns an error whose Error does not panic: err itself, or its text.
func sound(err error) error {
	if guard("Error", func() { _ = err.Error() }, nil) != nil {
		return errors.New(textOf(err))
	}
	return err
}

// guardedLogger is the application's logger. A panic in it, or in a method of what it
// prints, must not end the operation that the line is about.
type guardedLogger struct{ watermill.LoggerAdapter }

func guardLogger(l watermill.LoggerAdapter) watermill.LoggerAdapter {
	if _, ok := l.(guardedLogger); ok || l == nil {
		return l
	}
	return guardedLogger{l}
}

func (l guardedLogger) Error(msg string, err error, fields watermill.LogFields) {
	if broken := guard("the logger", func() { l.LoggerAdapter.Error(msg, err, fields) }, nil); broken != nil {
		// Once more with the text of the error only: the panic may have been the error's.
		_ = guard("the logger", func() {
			l.LoggerAdapter.Error(msg, errors.New(textOf(err)), fields.Add(watermill.LogFields{"logger_failed": broken.Error()}))
		}, nil)
	}
}

func (l guardedLogger) Info(msg string, fields watermill.LogFields) {
	_ = guard("the logger", func() { l.LoggerAdapter.Info(msg, fields) }, nil)
}

func (l guardedLogger) Debug(msg string, fields watermill.LogFields) {
	_ = guard("the logger", func() { l.LoggerAdapter.Debug(msg, fields) }, nil)
}

func (l guardedLogger) Trace(msg string, fields watermill.LogFields) {
	_ = guard("the logger", func() { l.LoggerAdapter.Trace(msg, fields) }, nil)
}

func (l guardedLogger) With(fields watermill.LogFields) (with watermill.LoggerAdapter) {
	with = l
	_ = guard("the logger", func() { with = guardedLogger{l.LoggerAdapter.With(fields)} }, nil)
	return with
}

// debugging reports whether debug lines may be written anywhere. Watermill's LoggerAdapter
// does not know its level, and the fields of a line cost a microsecond or two even if the
// line is dropped, as by Watermill's adapter for slog. An adapter may have the method
// Enabled of slog.Logger.
func debugging(l watermill.LoggerAdapter) bool {
	if g, ok := l.(guardedLogger); ok {
		l = g.LoggerAdapter
	}
	switch l := l.(type) {
	case watermill.NopLogger:
		return false
	case *watermill.StdLoggerAdapter:
		return l.DebugLogger != nil
	case interface {
		Enabled(context.Context, slog.Level) bool
	}:
		return l.Enabled(context.Background(), slog.LevelDebug)
	}
	return true
}

// interceptors are the application's Consumer.Interceptors. sarama would call them once
// per record and change the record in memory: a letter would contain the changes, and a
// record that was read again would not. Here they get a copy for each delivery.
type interceptors struct {
	all    []sarama.ConsumerInterceptor
	broken outage.Outage
}

// intercept calls the interceptors with a record. One that panics is skipped, as by sarama;
// one that calls runtime.Goexit costs the attempt.
func (i *interceptors) intercept(record *sarama.ConsumerMessage, logger watermill.LoggerAdapter) {
	topic, partition, offset := record.Topic, record.Partition, record.Offset
	failed := func(err error) {
		if report, due := i.broken.Failed(); due {
			logger.Error("A Consumer.Interceptor failed", err, report.AddTo(watermill.LogFields{
				"topic": topic, "kafka_partition": partition, "kafka_partition_offset": offset,
			}))
		}
	}
	for _, interceptor := range i.all {
		if err := guard("the interceptor", func() { interceptor.OnConsume(record) }, failed); err != nil {
			failed(err)
		}
	}
}

// orderKey calls SubscriberConfig.Key, in a goroutine of its own: runtime.Goexit would end that
// of the partition. If Key fails, the record's own key is used.
func (s *subscription) orderKey(r *sarama.ConsumerMessage) []byte {
	key := r.Key
	failed := func(err error) {
		if report, due := s.brokenKey.Failed(); due {
			s.loggerOf(r.Topic).Error("SubscriberConfig.Key failed: the record is ordered by its own key", err,
				report.AddTo(watermill.LogFields{"kafka_partition": r.Partition, "kafka_partition_offset": r.Offset}))
		}
	}
	var call sync.WaitGroup
	call.Go(func() {
		own := key
		if broken := guard("SubscriberConfig.Key", func() { own = s.sub.config.Key(r) }, failed); broken != nil {
			failed(broken)
			return
		}
		key = own
	})
	call.Wait()
	return key
}

// undecodable decides what happens to a record that cannot be decoded. One that is kept is
// tried again with backoff, until a deploy fixes the Unmarshaler or somebody skips it.
func (s *subscription) undecodable(d *Delivery, err error) *partition.Verdict {
	c := &s.sub.config
	r := d.kafka.Record()
	d.likeTheSubscriber()
	tell(s, "Hooks.Undecodable", c.Hooks.Undecodable, UndecodableEvent{d.ref(), err})
	if c.OnUndecodable == UndecodableReject || (c.OnUndecodable == UndecodableAuto && s.deadLetter != nil) {
		err = fmt.Errorf("cannot be decoded: %w", err)
		d.settle(d.verdict(doReject, noDelay, err))
		return nil
	}
	delay := wait.Backoff(d.Attempt(), 100*time.Millisecond, 30*time.Second)
	if c.Backoff != nil {
		delay = s.backoff(d, nil, err)
	}
	const text = "Record cannot be decoded, retrying: it is kept, and nothing is committed past it"
	fields := watermill.LogFields{
		"kafka_partition": r.Partition, "kafka_partition_offset": r.Offset, "retry_in": delay.String(),
	}
	others, report, due := s.undecoded.failed(r.Topic, r.Partition, r.Offset)
	if others > 0 {
		fields["others"] = others
	}
	fields = report.AddTo(fields)
	fields["attempt"] = d.Attempt() // the report also counts those of the partition's other records
	if due {
		s.loggerOf(r.Topic).Error(text, err, fields)
	} else {
		fields["err"] = textOf(err)
		s.loggerOf(r.Topic).Debug(text, fields)
	}
	return &partition.Verdict{Status: partition.Nacked, DueAt: s.dueIn(delay), Reason: err}
}

// decoded logs that a record that was kept has been decoded.
func (s *subscription) decoded(d *Delivery) {
	if report, over := s.undecoded.over(d.Topic(), d.Partition(), d.Offset()); over {
		fields := report.AddTo(watermill.LogFields{"kafka_partition": d.Partition(), "kafka_partition_offset": d.Offset()})
		fields["attempt"] = d.Attempt()
		s.loggerOf(d.Topic()).Info("Record decoded", fields)
	}
}

// undecoded has the records of a subscription that are kept because they cannot be decoded.
type undecoded struct {
	some atomic.Bool

	mu         sync.Mutex
	partitions map[topicPartition]*undecodedOf
}

// undecodedOf has those of one partition. They share log lines: there may be thousands.
type undecodedOf struct {
	outage  outage.Outage
	offsets map[int64]struct{}
}

func (u *undecoded) failed(topic string, partition int32, offset int64) (others int, report outage.Report, due bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.some.Store(true)
	at := topicPartition{topic, partition}
	of := u.partitions[at]
	if of == nil {
		of = &undecodedOf{offsets: map[int64]struct{}{}}
		if u.partitions == nil {
			u.partitions = map[topicPartition]*undecodedOf{}
		}
		u.partitions[at] = of
	}
	of.offsets[offset] = struct{}{}
	report, due = of.outage.Failed()
	return len(of.offsets) - 1, report, due
}

// over removes a record. It reports whether it was the last one of its partition, and a
// line was written about them.
func (u *undecoded) over(topic string, partition int32, offset int64) (outage.Report, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	at := topicPartition{topic, partition}
	of := u.partitions[at]
	if of == nil {
		return outage.Report{}, false
	}
	delete(of.offsets, offset)
	if len(of.offsets) > 0 {
		return outage.Report{}, false
	}
	u.remove(at)
	return of.outage.Over()
}

// released removes a partition that is released.
func (u *undecoded) released(topic string, partition int32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.remove(topicPartition{topic, partition})
}

func (u *undecoded) remove(at topicPartition) {
	delete(u.partitions, at)
	u.some.Store(len(u.partitions) > 0)
}
