package chaos

import (
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// story is a ledger made by hand, of one partition. Each line is a millisecond after the one before.
type story struct {
	Record
	now int64
}

func newStory(records int64) *story {
	s := &story{now: int64(time.Hour)}
	s.Spec = Spec{Policy: ackpolicy.NackOnError, MaxUncommitted: 3}
	s.Ends, s.Stored, s.Letters = []int64{records}, []int64{records}, map[ID]int{}
	s.add(Parent, Started, 0, 0, "")
	return s
}

func (s *story) add(member int, kind string, offset int64, attempt int, detail string) {
	s.wait(time.Millisecond)
	s.Entries = append(s.Entries, Entry{s.now, member, kind, ID{0, offset}, attempt, detail})
}

func (s *story) wait(d time.Duration) { s.now += int64(d) }

func (s *story) assigned(member int, start int64)   { s.add(member, Assigned, start, 0, "") }
func (s *story) committed(member int, offset int64) { s.add(member, Committed, offset, 0, "") }
func (s *story) start(member int, offset int64)     { s.add(member, Delivered, offset, 1, "") }
func (s *story) killed(member int)                  { s.add(member, Killed, 0, 0, "signal: killed") }

// end has the handler return.
func (s *story) end(member int, offset int64) {
	s.add(member, Done, offset, 1, ack)
	s.add(member, Settled, offset, 1, "acked")
}

// handle is a delivery from its start to its end.
func (s *story) handle(member int, offsets ...int64) {
	for _, offset := range offsets {
		s.start(member, offset)
		s.end(member, offset)
	}
}

// nacked is a delivery that fails.
func (s *story) nacked(member int, offset int64, attempt int) {
	s.add(member, Delivered, offset, attempt, "")
	s.add(member, Done, offset, attempt, nack)
	s.add(member, Settled, offset, attempt, "nacked")
}

func (s *story) again(member int, offset int64, attempt int) {
	s.add(member, Delivered, offset, attempt, "")
	s.add(member, Done, offset, attempt, ack)
	s.add(member, Settled, offset, attempt, "acked")
}

func (s *story) rejected(member int, offset int64) {
	s.start(member, offset)
	s.add(member, Done, offset, 1, reject)
	s.add(member, Settled, offset, 1, "rejected")
}

func (s *story) revoked(member int, watermark int64) {
	s.revokedSo(member, watermark, howEnded{Clean: true, FirstLeft: -1})
}

func (s *story) revokedSo(member int, watermark int64, how howEnded) {
	s.add(member, Revoked, watermark, 0, how.String()+" cause")
}

// draining reports that the drain has begun, by a delivery of the assignment.
func (s *story) draining(member int, offset int64, attempt int) {
	s.add(member, Draining, offset, attempt, "")
}

func (s *story) verb(member int, offset int64, verb, result string) {
	s.add(member, Call, offset, 1, verb)
	s.add(member, Returned, offset, 1, verb+" "+result)
}

// done ends a story well.
func (s *story) done(member int) {
	s.committed(member, s.Ends[0])
	s.revoked(member, s.Ends[0])
	s.add(member, Exited, 0, 0, "")
}
