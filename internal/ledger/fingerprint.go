package ledger

import (
	"hash/crc32"
	"time"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header is a record's header.
type Header struct{ Key, Value []byte }

// Hash is the fingerprint of a record under construction. The zero value is ready.
type Hash struct{ crc uint32 }

// Bytes adds bytes and their number; nil and empty differ.
func (h *Hash) Bytes(b []byte) {
	n := uint64(len(b)) + 1
	if b == nil {
		n = 0
	}
	h.number(n)
	h.crc = crc32.Update(h.crc, castagnoli, b)
}

func (h *Hash) number(n uint64) {
	crc := ^h.crc
	for shift := 56; shift >= 0; shift -= 8 { // crc32.Update of n's bytes, which would have to be allocated
		crc = castagnoli[byte(crc)^byte(n>>shift)] ^ crc>>8
	}
	h.crc = ^crc
}

// Fingerprint returns a number that identifies a record: its offset, timestamp, key and
// value, and whatever was added to h before. Two records that differ have the same number
// with a probability of 2^-32.
func (h Hash) Fingerprint(offset int64, timestamp time.Time, key, value []byte) uint32 {
	h.number(uint64(timestamp.UnixMilli()))
	h.Bytes(key)
	h.Bytes(value)
	// The offset is mixed in so that fingerprints can be added up: records that changed
	// places have another sum.
	x := uint64(h.crc)<<32 ^ uint64(offset)
	x ^= x >> 31
	x *= 0x9e3779b97f4a7c15
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	return uint32(x ^ x>>32)
}
