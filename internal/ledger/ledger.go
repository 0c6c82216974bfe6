// Package ledger encodes and decodes the metadata of an offset commit: which records above
// the committed offset are settled, and the attempts and times of the open ones.
//
// Kafka stores with each offset a text of at most offset.metadata.max.bytes, 4,096
// by default. A ledger is such a text. docs/ledger.md has the format, byte by byte,
// and the argument why a mark never skips a record that was not settled.
//
// The package is pure: no Kafka, no goroutine, no clock.
package ledger

import (
	"errors"
	"hash/crc32"
	"sort"
	"time"
)

// DefaultRoom is the default of a broker's offset.metadata.max.bytes.
const DefaultRoom = 4096

// Kind says what wrote a ledger.
type Kind uint8

const (
	Consumer Kind = iota // a member of this library
	Redrive              // ackpolicy letters
)

// Place is where a ledger is stored. It is part of the checksum: a text that was copied to
// another place is not trusted there.
type Place struct {
	Topic     string
	Partition int32
	Offset    int64 // the committed one
}

// Ledger describes the records from the committed offset on.
type Ledger struct {
	Kind Kind
	// TopicID is Kafka's id of the topic that the records were read from; zero if the
	// broker has no topic ids.
	TopicID [16]byte
	// Cluster is the checksum of the cluster's id (see ClusterOf) if there is a TopicID; 0 if
	// it is not known.
	Cluster uint32
	// Clean reports whether the member left after a drain, with nothing in flight.
	Clean bool
	// Crashes is the number of consecutive assignments that did not end cleanly, at most
	// 255. CrashedAt is when the last of them was taken over, in milliseconds.
	Crashes   int
	CrashedAt time.Time
	// Blocks are the settled records, in order.
	Blocks []Block
	// Open are the unsettled records that were delivered or rejected, in order.
	Open []Open
}

// ClusterOf returns the Ledger.Cluster of a cluster's id, 0 for "".
func ClusterOf(id string) uint32 { return crc32.Checksum([]byte(id), castagnoli) }

// Block is a group of settled records with one checksum: all of its marks hold, or none.
type Block struct {
	// Runs are in order and do not touch. A run may include offsets without a record.
	Runs []Run
	// Sum is the sum of the fingerprints of the marked records, see [Fingerprint].
	Sum uint32
	// Rank says which blocks get room first, see Encode. It is not stored.
	Rank Rank
}

// Rank says who depends on a block.
type Rank uint8

const (
	Plain    Rank = iota // if it is left out, its records are repeated
	Awaited              // somebody waits until it is stored
	Promised             // it was reported as stored
)

// Run is a range of settled records, from From (inclusive) to To (exclusive). From and
// To-1 are offsets of marked records.
type Run struct{ From, To int64 }

// Open is a record that was delivered and is not settled.
type Open struct {
	Offset   int64
	Attempts int       // deliveries so far
	First    time.Time // when the first of them began, to a millisecond; zero if not known
	Due      time.Time // when it may be delivered again, to a millisecond; zero for at once
	InFlight bool      // a handler had it when this was stored, or when an earlier owner died
	Alone    int       // how often it was handed out alone since, if in flight
	// Rejected is why somebody has given it up, before a handler had it once more; "": nobody has.
	Rejected string
	// Delay is the delay, to a millisecond, that its message asked for at its last nack, and Err
	// the error of its last delivery; zero if there is none. There may be no room for them.
	Delay time.Duration
	Err   string
	// Check is the low half of the record's fingerprint.
	Check uint16
}

// Errors of Decode: why a text is not used as a ledger.
var (
	// ErrForeign means that the text was not written by this library. An empty text is [ErrNone].
	ErrForeign = errors.New("the metadata is not a ledger of this library")
	// ErrNone means that there is no metadata: a stock member or an admin tool committed.
	ErrNone = errors.New("there is no metadata")
	// ErrNewer means that a later version of the library wrote the text.
	ErrNewer = errors.New("the ledger is of a later version of this library")
	// ErrDamaged means that the text was cut, changed, or copied from another topic,
	// partition or offset.
	ErrDamaged = errors.New("the ledger is damaged, or was stored for another topic, partition or offset")
)

// Marked reports whether one of the blocks marks an offset, and which. The blocks must be
// in order.
func Marked(blocks []Block, offset int64) (block int, marked bool) {
	block = sort.Search(len(blocks), func(i int) bool { return blocks[i].End() > offset })
	if block == len(blocks) {
		return 0, false
	}
	runs := blocks[block].Runs
	run := sort.Search(len(runs), func(i int) bool { return runs[i].To > offset })
	return block, run < len(runs) && runs[run].From <= offset
}

// End returns the offset after the last mark of the block.
func (b *Block) End() int64 { return b.Runs[len(b.Runs)-1].To }
