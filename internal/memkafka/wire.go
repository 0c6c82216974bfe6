package memkafka

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"

	"github.com/IBM/sarama"
)

// reader reads a request. It panics with errShort at its end.
type reader struct{ b []byte }

var errShort = errors.New("the request is too short")

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		panic(errShort)
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) i8() int8   { return int8(r.take(1)[0]) }
func (r *reader) i16() int16 { return int16(binary.BigEndian.Uint16(r.take(2))) }
func (r *reader) i32() int32 { return int32(binary.BigEndian.Uint32(r.take(4))) }
func (r *reader) i64() int64 { return int64(binary.BigEndian.Uint64(r.take(8))) }

// text reads a string, "" for null.
func (r *reader) text() string { return string(r.take(max(0, int(r.i16())))) }

func (r *reader) bytes() []byte { return r.take(max(0, int(r.i32()))) }

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		panic(errShort)
	}
	r.take(n)
	return v
}

// field reads bytes of a record, nil for null.
func (r *reader) field() []byte {
	n := r.varint()
	if n < 0 {
		return nil
	}
	return append([]byte{}, r.take(int(n))...)
}

// each calls do for the elements of an array.
func (r *reader) each(do func()) {
	for range r.i32() {
		do()
	}
}

// writer writes a response.
type writer struct{ b []byte }

func (w *writer) i8(v int8)   { w.b = append(w.b, byte(v)) }
func (w *writer) i16(v int16) { w.b = binary.BigEndian.AppendUint16(w.b, uint16(v)) }
func (w *writer) i32(v int32) { w.b = binary.BigEndian.AppendUint32(w.b, uint32(v)) }
func (w *writer) i64(v int64) { w.b = binary.BigEndian.AppendUint64(w.b, uint64(v)) }

func (w *writer) text(s string) {
	w.i16(int16(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) null() { w.i16(-1) }

func (w *writer) bytes(b []byte) {
	w.i32(int32(len(b)))
	w.b = append(w.b, b...)
}

func (w *writer) varint(v int64) { w.b = binary.AppendVarint(w.b, v) }

func (w *writer) field(b []byte) {
	if b == nil {
		w.varint(-1)
		return
	}
	w.varint(int64(len(b)))
	w.b = append(w.b, b...)
}

// array begins an array, whose length end writes.
func (w *writer) array() (end func(n int)) {
	at := len(w.b)
	w.i32(0)
	return func(n int) { binary.BigEndian.PutUint32(w.b[at:], uint32(n)) }
}

// What a batch has before its records: in all, up to its checksum, and up to its length.
const batchHeader, batchChecked, batchLength = 61, 21, 12

// encodeBatch returns a batch with one record.
func encodeBatch(m *sarama.ConsumerMessage) []byte {
	var record writer
	record.i8(0)
	record.varint(0)
	record.varint(0)
	record.field(m.Key)
	record.field(m.Value)
	record.varint(int64(len(m.Headers)))
	for _, h := range m.Headers {
		record.field(append([]byte{}, h.Key...)) // never null
		record.field(h.Value)
	}
	var w writer
	w.i64(m.Offset)
	w.i32(0) // the length
	w.i32(0) // the leader's epoch
	w.i8(2)
	w.i32(0) // the checksum
	w.i16(0)
	w.i32(0)
	w.i64(m.Timestamp.UnixMilli())
	w.i64(m.Timestamp.UnixMilli())
	w.i64(-1)
	w.i16(-1)
	w.i32(-1)
	w.i32(1)
	w.field(record.b)
	binary.BigEndian.PutUint32(w.b[8:], uint32(len(w.b)-batchLength))
	binary.BigEndian.PutUint32(w.b[17:], crc32.Checksum(w.b[batchChecked:], crc32.MakeTable(crc32.Castagnoli)))
	return w.b
}

// decodeBatches returns the records of batches. ok is false if they are compressed.
func decodeBatches(b []byte) (records []*sarama.ConsumerMessage, ok bool) {
	r := reader{b}
	for len(r.b) > 0 {
		r.i64()
		batch := reader{r.take(int(r.i32()))}
		batch.take(batchChecked - batchLength)
		if attributes := batch.i16(); attributes&7 != 0 {
			return nil, false
		}
		batch.i32()
		first := batch.i64()
		batch.take(8 + 8 + 2 + 4)
		batch.each(func() {
			batch.varint()
			batch.i8()
			m := &sarama.ConsumerMessage{Timestamp: time.UnixMilli(first + batch.varint())}
			batch.varint()
			m.Key, m.Value = batch.field(), batch.field()
			for range batch.varint() {
				m.Headers = append(m.Headers, &sarama.RecordHeader{Key: batch.field(), Value: batch.field()})
			}
			records = append(records, m)
		})
	}
	return records, true
}
