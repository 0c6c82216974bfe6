// Package write stores single records in a topic, independently of each other: a record
// that the broker refuses does not affect those that were sent with it, and a record whose
// response was lost is stored once.
//
// sarama's producer does neither, since a broker refuses batches, not records.
package write

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

// Record is what Write stores.
type Record struct {
	Partition  int32
	Key, Value []byte // nil: null
	Headers    []sarama.RecordHeader
	Timestamp  time.Time // zero: none
	// ID must be comparable, and the same when a record is written again after a failure.
	ID any
}

// Refused is returned for a record that the broker refuses for good.
type Refused struct{ Err error }

func (r *Refused) Error() string { return r.Err.Error() }
func (r *Refused) Unwrap() error { return r.Err }

// Permanent reports that another attempt would fail in the same way.
func (r *Refused) Permanent() bool { return true }

// ErrClosed is returned for a record that was not stored before Close.
var ErrClosed = errors.New("the writer is closed")

// Writer stores records in one topic.
type Writer struct {
	client sarama.Client
	topic  string

	mu       sync.Mutex
	limit    int // of a batch's size, in bytes
	lanes    map[int32]*lane
	producer producer // for lanes that have not started
	done     chan struct{}
	closed   bool
	work     sync.WaitGroup // one for the goroutine of each busy lane
}

type producer struct {
	id    int64
	epoch int16
}

// lane has what is to be written to one partition. It has one batch under way at a time,
// so that the sequence number of the next one is certain.
type lane struct {
	partition int32

	// Guarded by Writer.mu.
	queue  []*item       // not sent yet
	sent   map[any]*item // by ID: under way, or possibly stored, or stored without a report
	unsure []*item       // the batch that may be stored: it is sent first, unchanged
	busy   bool          // its goroutine is running

	// Used by the goroutine only.
	producer producer
	sequence int32
}

type item struct {
	Record
	size  int
	codec sarama.CompressionCodec

	// Guarded by Writer.mu.
	asked    *result // nil if nobody waits
	reported bool    // a failure was returned: the caller will write it again
	stored   bool
}

type result struct {
	done chan struct{} // closed with err set
	err  error
}

// New returns a writer. It requests a producer id from the broker, which requires the right
// to write.
func New(client sarama.Client, topic string) (*Writer, error) {
	w := &Writer{client: client, topic: topic, lanes: map[int32]*lane{}, done: make(chan struct{})}
	w.SetLimit(0)
	var err error
	w.producer, err = w.newProducer()
	return w, err
}

// unknownLimit replaces a max.message.bytes that is not known: a little less than Kafka's default.
const unknownLimit = 1_000_000

// SetLimit sets the topic's max.message.bytes; 0 means unknown. It is a hint: what is larger
// is compressed and sent nevertheless.
func (w *Writer) SetLimit(bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limit = bytes
	if bytes <= 0 {
		w.limit = unknownLimit
	}
}

// Write stores a record. It returns nil once the record is stored, and a *Refused if it
// never will be. After any other error it may be stored: written again with the same ID, it
// is still stored once. If ctx ends, a record under way may or may not be stored.
func (w *Writer) Write(ctx context.Context, r Record) error {
	it, asked := w.enqueue(r)
	select {
	case <-asked.done:
		return asked.err
	case <-ctx.Done():
		w.mu.Lock()
		it.asked = nil
		w.mu.Unlock()
		return context.Cause(ctx)
	}
}

func (w *Writer) enqueue(r Record) (*item, *result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.Timestamp = r.Timestamp.Truncate(time.Millisecond)
	l := w.lanes[r.Partition]
	if l == nil {
		l = &lane{partition: r.Partition, sent: map[any]*item{}, producer: w.producer}
		w.lanes[r.Partition] = l
	}
	it := l.sent[r.ID]
	if it == nil {
		it = &item{Record: r, size: r.Size(), codec: w.client.Config().Producer.Compression}
		if it.codec == sarama.CompressionNone && it.size > w.limit {
			it.codec = w.compressed()
		}
		l.queue = append(l.queue, it)
	}
	asked := &result{done: make(chan struct{})}
	it.asked = asked
	switch {
	case w.closed:
		it.resolve(ErrClosed)
	case it.stored:
		delete(l.sent, r.ID)
		it.resolve(nil)
	case !l.busy:
		l.busy = true
		w.work.Go(func() { w.run(l) })
	}
	return it, asked
}

// resolve ends the wait for an item. The caller holds Writer.mu.
func (it *item) resolve(err error) {
	it.reported = err != nil
	if it.asked != nil {
		it.asked.err = err
		close(it.asked.done)
		it.asked = nil
	}
}

// most limits the records of a batch, and so the cost of a refused one.
const most = 64

// next returns the batch to send, or nil if there is nothing to do; the goroutine then ends.
func (w *Writer) next(l *lane) []*item {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		w.fail(l, l.queue, ErrClosed)
		w.fail(l, l.unsure, ErrClosed)
		l.queue, l.unsure = nil, nil
	}
	if len(l.unsure) > 0 && (len(l.queue) > 0 || slices.ContainsFunc(l.unsure, (*item).awaited)) {
		batch := l.unsure
		l.unsure = nil
		return batch
	}
	var batch []*item
	size := 0
	for len(l.queue) > 0 && len(batch) < most {
		it := l.queue[0]
		if len(batch) > 0 && (size+it.size > w.limit || it.codec != batch[0].codec || it.Timestamp.IsZero() != batch[0].Timestamp.IsZero()) {
			break
		}
		l.queue[0] = nil
		l.queue = l.queue[1:]
		if it.awaited() {
			batch = append(batch, it)
			size += it.size
			l.sent[it.ID] = it
		}
	}
	if len(batch) == 0 {
		l.busy = false
	}
	return batch
}

func (it *item) awaited() bool { return it.asked != nil }

// fail ends the wait for items that are not under way. The caller holds Writer.mu.
func (w *Writer) fail(l *lane, items []*item, err error) {
	for _, it := range items {
		delete(l.sent, it.ID)
		it.resolve(err)
	}
}

// Reset is called when the topic was created again: the broker knows none of its batches.
func (w *Writer) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.lanes {
		maps.DeleteFunc(l.sent, func(_ any, it *item) bool { return it.stored })
	}
}

// Close ends the writer. Records that are not stored fail. The caller cuts the connections
// before, or Close waits for responses.
func (w *Writer) Close() {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.done)
	}
	w.mu.Unlock()
	w.work.Wait()
}

// The most that a batch and a record take in addition to key, value and headers.
const (
	overhead       = 128
	recordOverhead = 40
	headerOverhead = 10
)

// Size returns an upper bound of the size of an uncompressed batch with only this record.
func (r *Record) Size() int {
	n := recordOverhead + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += headerOverhead + len(h.Key) + len(h.Value)
	}
	return overhead + n
}
