package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

// timed is a run at a fixed rate. A record's latency is counted from when it was due
// to be sent, not from when it was: what waits in the producer behind a stall is late,
// too (else the omission of a stalled sender would be coordinated with the stall).
type timed struct {
	Job     job
	Rate    float64       // records per second, over all partitions
	WarmUp  time.Duration // at the same rate, not measured
	For     time.Duration
	ColdKey uint32 // keys from this number on are cold; 0 is the hot one
}

// latencies are quantiles in milliseconds.
type latencies struct {
	Count               int64
	P50, P99, P999, Max float64
}

// timedResult has the latencies of all records, those of the hot key, and those of the cold ones.
type timedResult struct{ All, Hot, Cold latencies }

// run has the consumer start on a separate topic, and sends once it reads every partition.
func (t timed) run(key func(record int64) int64) (timedResult, error) {
	warm := int64(t.Rate * t.WarmUp.Seconds())
	total := warm + int64(t.Rate*t.For.Seconds())
	topic, err := newTopic(t.Job.Brokers, "bench-timed", t.Job.Partitions)
	if err != nil {
		return timedResult{}, err
	}
	t.Job.Topic, t.Job.Group = topic, group("timed", t.Job.Consumer)
	t.Job.Records = total + int64(t.Job.Partitions)
	record := func(key int64, s stamp) *kgo.Record {
		return &kgo.Record{
			Topic: topic, Partition: int32(key) % int32(t.Job.Partitions),
			Key: fmt.Appendf(nil, "key-%d", key), Value: s.encode(t.Job.Size),
		}
	}
	err = fill(t.Job.Brokers, t.Job.Partitions, func(i int) *kgo.Record { return record(int64(i), stamp{kind: prime}) })
	if err != nil {
		return timedResult{}, err
	}
	cl, err := newProducer(t.Job.Brokers, kgo.ProducerLinger(0))
	if err != nil {
		return timedResult{}, err
	}
	defer cl.Close()
	if err := cl.Ping(context.Background()); err != nil {
		return timedResult{}, err
	}
	timeout := time.Minute + t.WarmUp + t.For
	// The child is the same whichever experiment asks.
	return inChild[timedResult]("latency", t, timeout, func(ctx context.Context) error {
		var once sync.Once
		var failed error
		err := pace(ctx, t.Rate, total, func(i int64, due time.Time) {
			kind := byte(measured)
			if i < warm {
				kind = warmUp
			}
			k := key(i)
			cl.Produce(ctx, record(k, stamp{due: due, key: uint32(k), kind: kind}), func(_ *kgo.Record, err error) {
				if err != nil {
					once.Do(func() { failed = err })
				}
			})
		})
		return errors.Join(err, cl.Flush(ctx), failed)
	})
}

// pace calls send for each of n records when it is due. One that is late is sent at
// once, and was due when it was.
func pace(ctx context.Context, rate float64, n int64, send func(i int64, due time.Time)) error {
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		send(i, due)
	}
	return nil
}

// timedBook gathers the latencies of a run.
type timedBook struct {
	spec timed

	mu             sync.Mutex
	primed         int
	all, hot, cold *hdrhistogram.Histogram // microseconds
}

func newTimedBook(spec timed) *timedBook {
	histogram := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, time.Minute.Microseconds(), 3) }
	return &timedBook{spec: spec, all: histogram(), hot: histogram(), cold: histogram()}
}

// note takes a record whose handler starts now. It returns true with the last one of
// those that show that every partition is read.
func (b *timedBook) note(s stamp, now time.Time) (primed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch s.kind {
	case prime:
		b.primed++
		return b.primed == b.spec.Job.Partitions
	case measured:
		late := min(max(now.Sub(s.due), 0), time.Minute).Microseconds()
		_ = b.all.RecordValue(late) // it is within the bounds
		if s.key == 0 {
			_ = b.hot.RecordValue(late)
		} else if s.key >= b.spec.ColdKey {
			_ = b.cold.RecordValue(late)
		}
	}
	return false
}

func (b *timedBook) result() timedResult {
	b.mu.Lock()
	defer b.mu.Unlock()
	return timedResult{latenciesOf(b.all), latenciesOf(b.hot), latenciesOf(b.cold)}
}

func latenciesOf(h *hdrhistogram.Histogram) latencies {
	ms := func(micros int64) float64 { return float64(micros) / 1000 }
	return latencies{
		Count: h.TotalCount(), P50: ms(h.ValueAtQuantile(50)), P99: ms(h.ValueAtQuantile(99)),
		P999: ms(h.ValueAtQuantile(99.9)), Max: ms(h.Max()),
	}
}

func timedChild(text []byte) (any, error) {
	var spec timed
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	c, err := find(spec.Job.Consumer)
	if err != nil {
		return nil, err
	}
	book := newTimedBook(spec)
	_, err = measure(spec.Job, c.run, func(m *meter, value []byte) {
		if book.note(decodeStamp(value), time.Now()) {
			ready()
		}
		m.serve()
	})
	return book.result(), err
}
