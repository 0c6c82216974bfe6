package simulation

import (
	"fmt"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// term is one assignment of a partition to a member.
type term struct {
	m         *member
	part      int32
	base      *base // nil: not known
	delivered map[int64]*delivery
	highest   map[string]int64     // by lane
	busy      map[string]*delivery // by lane
	sure      map[int64]bool       // the library says that it is settled
	inFlight  int
	over      bool
	clean     bool          // and its last commit is stored
	replayed  int           // records that it had settled, and that were delivered again
	draining  time.Duration // since when; 0: it does not drain
}

// lost takes note that what the term has confirmed may never reach its handler.
func (t *term) lost() {
	for _, d := range t.delivered {
		d.unsure = true
	}
}

// ran reports whether a handler runs, or did until its context ended.
func (t *term) ran() bool {
	if t.inFlight > 0 {
		return true
	}
	for _, d := range t.delivered {
		if d.stopped {
			return true
		}
	}
	return false
}

// unconfirmed takes note that a commit under ConfirmFirst has an unknown outcome.
func (j *judge) unconfirmed(m *member, e ackpolicy.UnconfirmedEvent) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(m, e.Partition, e.Offset, "unconfirmed: %v", e.Err)
	for _, t := range j.terms {
		if d := t.delivered[e.Offset]; t.m == m && t.part == e.Partition && d != nil {
			d.unsure = true
		}
	}
}

// assigned takes note of where an assignment begins.
func (j *judge) assigned(m *member, e ackpolicy.AssignedEvent) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(m, e.Partition, e.Start, "assigned")
	j.begun[e.Partition]++
}

// revoked takes note of how an assignment ended.
func (j *judge) revoked(m *member, e ackpolicy.RevokedEvent) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(m, e.Partition, e.Offset, "revoked: %+v", e)
	if j.gone[m] {
		return
	}
	if e.Err == nil {
		j.ended[e.Partition]++
	}
	for draining, t := range j.terms {
		if t.m != m || t.part != e.Partition || t.over {
			continue
		}
		select {
		case <-draining:
		default:
			continue
		}
		t.over = true
		if e.TimedOut && e.Pending == 0 && e.Letters == 0 && !t.ran() {
			j.violateLocked("drain", t.part, -1, "partition %d: the drain of member %d lasted until its timeout, and nothing was left that it may wait for", t.part, m.id)
		}
		if e.Err != nil {
			t.lost()
			continue
		}
		t.clean = true
		for _, d := range t.delivered {
			d.reported = d.done && !d.stopped
		}
		for offset := range t.sure {
			if r := t.delivered[offset].record; r.never == "" && e.Unmarked == 0 {
				r.never = fmt.Sprintf("member %d had settled it, and ended well", m.id)
			}
		}
	}
}
