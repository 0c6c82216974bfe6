package main

import "encoding/binary"

// What soakEvents report. Members write them into one pipe, each with a single
// write and before they continue: so they come in the order in which things happened.
// Those of hooks come just after it.
const (
	evStart        = iota + 1 // a handler begins; A: attempt, B: key
	evEnd                     // it is about to return; A: what becomes of the delivery, a status, perhaps with settled* bits; B: key
	evSettled                 // A: status, B: attempt
	evDeadLettered            // the dead letter is stored
	evAssigned                // Offset: the first record to come
	evReleased                // Offset: the watermark; A: released* bits, and the letters that were not stored, times releasedLetter; B: settled records without marks
	evCommitted               // Offset: the next record to be read
	evKilled                  // of the parent: the member's process is gone
	evSample                  // Offset: heap, A: resident bytes, B: goroutines after its last session
	evFault                   // a member saw something that must not be; A: which, see soakFaults
)

// Statuses, as ackpolicy.Status has them.
const (
	statusAcked = iota + 1
	statusNacked
	statusRejected
)

// Bits of evEnd.
const (
	settledLate   = 1 << (8 + iota) // another goroutine settles it, after its handler has returned
	settledStored                   // AckSync has reported that the ack is stored
)

// Bits of evReleased.
const (
	releasedLate   = 1 << iota // handlers outlived the drain
	releasedFailed             // the last commit was not confirmed
	releasedLetter             // times the number of letters
)

var (
	soakStatuses = []string{"pending", "acked", "nacked", "rejected"}
	soakFaults   = []string{"the subscriber or router failed", "AckSync failed on a record that is ours", "a message without a delivery"}
)

type soakEvent struct {
	Kind, Member byte
	Partition    int32
	Offset, A, B int64
}

const soakEventSize = 30 // far below PIPE_BUF: a write is whole

func (e soakEvent) encode() []byte {
	b := make([]byte, 0, soakEventSize)
	b = append(b, e.Kind, e.Member)
	b = binary.BigEndian.AppendUint32(b, uint32(e.Partition))
	for _, n := range []int64{e.Offset, e.A, e.B} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b
}

func decodeSoakEvent(b []byte) soakEvent {
	return soakEvent{
		b[0], b[1], int32(binary.BigEndian.Uint32(b[2:])),
		int64(binary.BigEndian.Uint64(b[6:])), int64(binary.BigEndian.Uint64(b[14:])), int64(binary.BigEndian.Uint64(b[22:])),
	}
}
