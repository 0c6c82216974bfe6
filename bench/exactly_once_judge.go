package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

// outputs is a reader with read_committed, which notes what it sees and when.
type outputs struct {
	client *kgo.Client
	done   chan struct{}

	mu             sync.Mutex
	err            error
	seen           map[uint32]bool
	visible, twice int
	first, last    time.Time
	atFirst        int // visible with the first ones
	late           *hdrhistogram.Histogram
}

func newOutputs(brokers []string, topic string) (*outputs, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		return nil, err
	}
	o := &outputs{client: client, done: make(chan struct{}), seen: map[uint32]bool{},
		late: hdrhistogram.New(1, time.Minute.Microseconds(), 3)}
	go o.read()
	return o, nil
}

func (o *outputs) read() {
	defer close(o.done)
	for {
		fetches := o.client.PollFetches(context.Background())
		if fetches.IsClientClosed() {
			return
		}
		o.note(fetches, time.Now())
	}
}

func (o *outputs) note(fetches kgo.Fetches, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = fetches.Err()
	}
	fetches.EachRecord(func(r *kgo.Record) {
		s := decodeStamp(r.Value)
		if o.seen[s.key] {
			o.twice++
			return
		}
		o.seen[s.key] = true
		o.visible++
		if s.kind == measured {
			late := min(max(now.Sub(s.due), 0), time.Minute).Microseconds()
			_ = o.late.RecordValue(late) // it is within the bounds
		}
	})
	if o.first.IsZero() && o.visible > 0 {
		o.first, o.atFirst = now, o.visible
	}
	o.last = now
}

// await waits until a condition holds, which is looked at under the lock.
func (o *outputs) await(s *service, holds func(*outputs) bool) error {
	for deadline := time.Now().Add(serviceTimeout); ; time.Sleep(time.Millisecond) {
		o.mu.Lock()
		ok, err, visible := holds(o), o.err, o.visible
		o.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-s.ended:
			return s.failure()
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: after %v, %d outputs are visible", s.name, serviceTimeout, visible)
		}
	}
}

// close ends the reader.
func (o *outputs) close() error {
	o.client.Close()
	<-o.done
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}
