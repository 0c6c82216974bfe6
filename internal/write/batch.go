package write

import (
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

func (w *Writer) run(l *lane) {
	for batch := w.next(l); batch != nil; batch = w.next(l) {
		w.deliver(l, batch)
	}
}

// attempts is how often a batch is sent before its records fail: the leader may have moved,
// or the connection been lost.
const attempts = 3

// deliver sends records until the result of each is known, or cannot be known.
func (w *Writer) deliver(l *lane, items []*item) {
	err := w.send(l, items)
	var refused *refusedBatch
	switch {
	case err == nil:
		w.stored(l, items)
	case !errors.As(err, &refused):
		w.unsure(l, items, err)
	case len(items) > 1:
		for _, part := range refused.split(items) {
			if l.unsure == nil {
				w.deliver(l, part)
			} else { // its sequence number belongs to a batch that may be stored
				w.failed(l, part, errors.New("an earlier batch has no response yet"))
			}
		}
	case refused.tooLarge() && items[0].codec == sarama.CompressionNone:
		items[0].codec = w.compressed()
		w.deliver(l, items)
	default:
		w.failed(l, items, &Refused{refused.error})
	}
}

func (w *Writer) stored(l *lane, items []*item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(l.sent) > 10*most { // nobody asked again for some of them
		maps.DeleteFunc(l.sent, func(_ any, it *item) bool { return it.stored })
	}
	for _, it := range items {
		it.stored = true
		if it.awaited() || !it.reported {
			delete(l.sent, it.ID)
		}
		it.resolve(nil)
	}
}

func (w *Writer) failed(l *lane, items []*item, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail(l, items, err)
}

// unsure keeps a batch that may be stored. If it is sent again with the same sequence
// number it is stored once; no other batch may use that number.
func (w *Writer) unsure(l *lane, items []*item, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l.unsure = items
	for _, it := range items {
		it.resolve(err)
	}
	w.fail(l, l.queue, err) // they would have to wait for that batch
	l.queue = nil
}

// send sends a batch until there is a definite response, a few times.
func (w *Writer) send(l *lane, items []*item) (err error) {
	pause := w.client.Config().Producer.Retry.Backoff
	for attempt := 1; ; attempt++ {
		if err = w.sendOnce(l, items); err == nil {
			l.advance(len(items))
			return nil
		}
		if errors.As(err, new(*refusedBatch)) || attempt == attempts {
			return err
		}
		switch {
		case is(err, sarama.ErrTopicAuthorizationFailed, sarama.ErrClusterAuthorizationFailed):
			return err
		case is(err, sarama.ErrOutOfOrderSequenceNumber, sarama.ErrUnknownProducerID, sarama.ErrInvalidProducerEpoch,
			sarama.ErrInvalidProducerIDMapping, sarama.ErrProducerFenced):
			// The broker has forgotten our producer: start again with a new one.
			p, perr := w.newProducer()
			if perr != nil {
				return errors.Join(err, perr)
			}
			l.producer, l.sequence = p, 0
			continue
		}
		if !wait.For(pause, w.done) {
			return err
		}
		if rerr := w.client.RefreshMetadata(w.topic); rerr != nil {
			return rerr
		}
	}
}

func (l *lane) advance(n int) {
	l.sequence = int32((int64(l.sequence) + int64(n)) & math.MaxInt32)
}

func (w *Writer) sendOnce(l *lane, items []*item) error {
	config := w.client.Config()
	leader, err := w.client.Leader(w.topic, l.partition)
	if err != nil {
		return err
	}
	request := &sarama.ProduceRequest{
		Version: 3, RequiredAcks: sarama.WaitForAll, Timeout: int32(config.Producer.Timeout / time.Millisecond),
	}
	switch {
	case config.Version.IsAtLeast(sarama.V2_4_0_0):
		request.Version = 8 // says which records are refused
	case config.Version.IsAtLeast(sarama.V2_1_0_0):
		request.Version = 7 // zstd
	}
	request.AddBatch(w.topic, l.partition, l.batch(items, config))
	type response struct {
		response *sarama.ProduceResponse
		err      error
	}
	responses := make(chan response, 1) // not Broker.Produce, with which one partition waits for the response of another
	err = leader.AsyncProduce(request, func(r *sarama.ProduceResponse, err error) { responses <- response{r, err} })
	var a response
	if err == nil {
		select {
		case a = <-responses:
			err = a.err
		case <-w.done:
			return ErrClosed
		}
	}
	if errors.As(err, new(sarama.PacketEncodingError)) {
		return &refusedBatch{error: err}
	}
	if err != nil {
		_ = leader.Close()
		return err
	}
	block := a.response.GetBlock(w.topic, l.partition)
	if block == nil {
		return sarama.ErrIncompleteResponse
	}
	switch block.Err {
	case sarama.ErrNoError, sarama.ErrDuplicateSequenceNumber:
		return nil
	case sarama.ErrMessageSizeTooLarge, sarama.ErrMessageSetSizeTooLarge, sarama.ErrInvalidTimestamp,
		sarama.ErrInvalidRecord, sarama.ErrUnsupportedForMessageFormat, sarama.ErrUnsupportedCompressionType,
		sarama.ErrPolicyViolation:
		return refusal(block)
	}
	return block.Err
}

// batch returns the records as a batch with the lane's next sequence number.
func (l *lane) batch(items []*item, config *sarama.Config) *sarama.RecordBatch {
	b := &sarama.RecordBatch{
		Version: 2, Codec: items[0].codec, CompressionLevel: sarama.CompressionLevelDefault,
		ProducerID: l.producer.id, ProducerEpoch: l.producer.epoch, FirstSequence: l.sequence,
		LastOffsetDelta: int32(len(items) - 1),
		FirstTimestamp:  items[0].Timestamp, MaxTimestamp: items[0].Timestamp,
	}
	if b.Codec == config.Producer.Compression {
		b.CompressionLevel = config.Producer.CompressionLevel
	}
	for i, it := range items {
		record := &sarama.Record{
			Key: it.Key, Value: it.Value, OffsetDelta: int64(i),
			TimestampDelta: it.Timestamp.Sub(b.FirstTimestamp),
		}
		for j := range it.Headers {
			record.Headers = append(record.Headers, &it.Headers[j])
		}
		if it.Timestamp.After(b.MaxTimestamp) {
			b.MaxTimestamp = it.Timestamp
		}
		b.Records = append(b.Records, record)
	}
	return b
}

// compressed returns the codec for records that are too large without compression.
func (w *Writer) compressed() sarama.CompressionCodec {
	if w.client.Config().Version.IsAtLeast(sarama.V2_1_0_0) {
		return sarama.CompressionZSTD
	}
	return sarama.CompressionGZIP
}

// producerTries is how often a producer id is requested: a broker that has just started
// has none for a moment.
const producerTries = 8

func (w *Writer) newProducer() (producer, error) {
	for attempt := 1; ; attempt++ {
		r, err := w.client.InitProducerID()
		switch {
		case err != nil:
			return producer{}, err
		case r.Err == sarama.ErrNoError:
			return producer{r.ProducerID, r.ProducerEpoch}, nil
		case !is(r.Err, sarama.ErrOffsetsLoadInProgress, sarama.ErrConsumerCoordinatorNotAvailable) || attempt == producerTries ||
			!wait.For(wait.Backoff(attempt, 20*time.Millisecond, time.Second), w.done):
			return producer{}, r.Err
		}
	}
}

func is(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// refusedBatch is the error of a batch that the broker refuses for good.
type refusedBatch struct {
	error
	records []int // the records that the broker names
}

func (r *refusedBatch) Unwrap() error { return r.error }

func refusal(block *sarama.ProduceResponseBlock) *refusedBatch {
	r := &refusedBatch{error: block.Err}
	message := block.ErrorMessage
	for _, e := range block.RecordErrors {
		r.records = append(r.records, int(e.BatchIndex))
		if e.BatchIndexErrorMessage != nil {
			message = e.BatchIndexErrorMessage
		}
	}
	if message != nil && *message != "" {
		r.error = &explained{block.Err, *message}
	}
	return r
}

func (r *refusedBatch) tooLarge() bool {
	return is(r.error, sarama.ErrMessageSizeTooLarge, sarama.ErrMessageSetSizeTooLarge)
}

// split divides a refused batch: each record that the broker names alone, and the rest; or
// in halves, if it names none.
func (r *refusedBatch) split(items []*item) (parts [][]*item) {
	var rest []*item
	for i, it := range items {
		if slices.Contains(r.records, i) {
			parts = append(parts, []*item{it})
		} else {
			rest = append(rest, it)
		}
	}
	if len(parts) == 0 {
		half := len(items) / 2
		return [][]*item{items[:half], items[half:]}
	}
	if len(rest) > 0 {
		parts = append([][]*item{rest}, parts...)
	}
	return parts
}

// explained is an error of the broker with the message that it sent.
type explained struct {
	error
	message string
}

func (e *explained) Error() string { return e.error.Error() + " (" + e.message + ")" }
func (e *explained) Unwrap() error { return e.error }
