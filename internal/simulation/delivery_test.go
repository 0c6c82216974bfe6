package simulation

import (
	"context"
	"fmt"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// take judges that a record is handed out.
func (j *judge) take(m *member, d *ackpolicy.Delivery, payload []byte) *delivery {
	j.mu.Lock()
	t := j.terms[d.Draining()]
	j.mu.Unlock()
	if t == nil {
		b := j.baseOf(m, d.Partition())
		j.mu.Lock()
		if t = j.terms[d.Draining()]; t == nil {
			t = &term{
				m: m, part: d.Partition(), base: b, delivered: map[int64]*delivery{}, highest: map[string]int64{},
				busy: map[string]*delivery{}, sure: map[int64]bool{},
			}
			j.terms[d.Draining()] = t
			j.w.goes.Go(func() { j.watch(t, d.Draining()) })
			if known := j.begun[t.part] - j.ended[t.part]; b != nil && b.ledger != nil && b.ledger.Crashes > known && j.topics == 1 {
				j.violateLocked("deaths", t.part, -1, "partition %d: member %d has found %d deaths, of %d assignments that did not end well, or have not ended", t.part, m.id, b.ledger.Crashes, known)
			}
			j.noteLocked(m, t.part, -1, "first delivery of an assignment, which began with %v", b)
		}
		j.mu.Unlock()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.recordOf(d.Partition(), d.Offset(), payload)
	j.deliveries++
	del := &delivery{record: r, term: t, attempt: d.Attempt(), serial: j.deliveries}
	r.all = append(r.all, del)
	j.noteLocked(m, r.part, r.offset, "delivered, attempt %d", del.attempt)
	if j.gone[m] {
		return del
	}
	if j.topics == 1 { // in a topic that was created again some records may come twice
		j.handedOut(del)
	}
	r.last = del
	t.delivered[r.offset] = del
	t.busy[r.lane] = del
	t.highest[r.lane] = max(t.highest[r.lane], r.offset)
	t.inFlight++
	if j.w.policy == ackpolicy.AckFirst && r.settled == "" {
		r.settled = "taken under AckFirst"
	}
	return del
}

// recordOf returns the record that a message brought. One of an earlier topic is in no book.
func (j *judge) recordOf(part int32, offset int64, payload []byte) *record {
	if string(payload) != value(j.topics, offset) {
		return &record{part: part, offset: offset, lane: fmt.Sprint("earlier topic #", offset)}
	}
	return j.book[part][offset]
}

// value is that of a record: the first topic's, or the next one's.
func value(topics int, offset int64) string { return fmt.Sprintf("%d:%d", topics, offset) }

// watch takes note of when an assignment begins to drain.
func (j *judge) watch(t *term, draining <-chan struct{}) {
	<-draining
	j.mu.Lock()
	defer j.mu.Unlock()
	t.draining = j.now()
}

func (j *judge) handedOut(d *delivery) {
	r, t := d.record, d.term
	bad := func(rule, format string, args ...any) {
		j.violateLocked(rule, r.part, r.offset, "%d/%d, attempt %d at member %d: %s", r.part, r.offset, d.attempt, t.m.id, fmt.Sprintf(format, args...))
	}
	earlier := t.delivered[r.offset]
	// Repeats.
	switch {
	case r.never != "" && j.w.policy != ackpolicy.AckFirst: // there its handler must not begin
		bad("repeat", "delivered again though %s", r.never)
	case t.base != nil && t.base.covers(r.offset):
		bad("repeat", "delivered though it was stored as settled: %v", t.base)
	case earlier != nil && t.sure[r.offset]:
		bad("repeat", "delivered again in the assignment that has settled it")
	}
	if before := r.last; before != nil && before.term != t && before.term.sure[r.offset] && !before.term.clean {
		before.term.replayed++
		if bound := j.w.maxUncommitted; bound != ackpolicy.Unlimited && before.term.replayed > bound {
			bad("repeat", "the %dth record that is repeated of one assignment, MaxUncommitted is %d", before.term.replayed, bound)
		}
	}
	// Attempts.
	switch {
	case earlier != nil && d.attempt != earlier.attempt+1:
		bad("attempt", "it follows attempt %d", earlier.attempt)
	case earlier == nil && t.base != nil:
		// After two deaths the assignment itself names what it is about to hand out.
		if open, ok := t.base.openOf(r.offset); d.attempt != open.Attempts+1 && !(ok && open.InFlight && t.base.ledger.Crashes >= 2 && d.attempt == open.Attempts) {
			bad("attempt", "%d attempts were stored", open.Attempts)
		}
		fallthrough
	case earlier == nil:
		if last := r.last; last != nil && last.reported && d.attempt <= last.attempt {
			bad("attempt", "attempt %d was that of an owner that ended well", last.attempt)
		}
	}
	// Delays.
	if last := r.last; last != nil && last.nacked > 0 && (last.term == t || last.term.clean) && j.now() < last.due-2*time.Millisecond {
		bad("delay", "nacked until %v", last.due)
	}
	// Order.
	if busy := t.busy[r.lane]; busy != nil {
		bad("order", "%d of its lane is in flight", busy.offset)
	}
	if earlier == nil && r.offset < t.highest[r.lane] {
		bad("order", "delivered first after %d of its lane", t.highest[r.lane])
	}
	if t.base != nil {
		for _, o := range j.book[r.part][max(0, t.base.offset):r.offset] {
			switch before := t.delivered[o.offset]; {
			case o.lane != r.lane, o.settled != "", t.base.covers(o.offset):
			case before == nil:
				bad("order", "%d of its lane comes before and was not delivered", o.offset)
			// A record that a commit names before its handler gets it is taken before that: what is nacked meanwhile
			// does not call it back.
			case before.nacked > 0 && !(r.named.attempt == d.attempt && before.nacked > r.named.at-5*time.Millisecond):
				bad("order", "%d of its lane was nacked and waits", o.offset)
			}
		}
	}
	if t.over || t.draining > 0 && j.now() > t.draining {
		bad("drain", "delivered, though its partition has drained since %v", t.draining)
	}
	if t.inFlight > j.w.maxInFlight {
		bad("inflight", "%d are in flight already", t.inFlight)
	}
}

// begin judges that a handler begins.
func (j *judge) begin(m *member, d *ackpolicy.Delivery) *delivery {
	var stored *base
	if j.w.policy == ackpolicy.AckFirst {
		if info := j.w.cluster.GroupInfo(group); info != nil {
			c := info.Commits[topic][d.Partition()]
			stored = readBase(d.Partition(), c.Offset, c.Metadata)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	del := j.terms[d.Draining()].delivered[d.Offset()]
	if j.gone[m] || del == nil {
		return &delivery{record: &record{part: d.Partition(), offset: d.Offset()}, term: &term{m: m}}
	}
	r := del.record
	r.handled++
	if j.w.policy == ackpolicy.AckFirst && j.topics == 1 {
		if r.never != "" {
			j.violateLocked("repeat", r.part, r.offset, "%d/%d: its handler begins though %s", r.part, r.offset, r.never)
		}
		if stored == nil || !stored.covers(r.offset) {
			j.violateLocked("confirm", r.part, r.offset, "%d/%d: the handler begins, and its commit is not stored: %v", r.part, r.offset, stored)
		}
		r.never = "its handler has begun, under ConfirmFirst"
	}
	return del
}

// finish takes note that a handler has returned.
func (j *judge) finish(d *delivery, stopped bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(d.term.m, d.part, d.offset, "attempt %d ends: %v", d.attempt, err)
	if d.done, d.stopped = true, stopped; d.term.busy[d.lane] == d {
		delete(d.term.busy, d.lane)
	}
	d.term.inFlight--
}

// intends takes note of what a handler's end is to do.
func (j *judge) intends(d *delivery, b behaviour) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.gone[d.term.m] || j.w.policy == ackpolicy.AckFirst {
		return
	}
	delay := time.Duration(-1)
	acks := false
	switch p := j.w.policy; {
	case b.end == signalsAck:
		acks = true
	case b.end == signalsNack:
		delay = b.delay
	case b.end == signalsReject, p == ackpolicy.Manual:
	case b.end == succeeds, p == ackpolicy.Ack:
		acks = true
	case p == ackpolicy.NackOnError:
		delay = resend
	}
	if b.manner == nacksEarly {
		return
	}
	if b.end == fails || b.end == panics {
		d.throwAway()
	}
	if acks {
		d.ack("its handler's end")
	}
	if delay >= 0 {
		j.nacksLocked(d, delay)
	}
}

func (j *judge) nacks(d *delivery, delay time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.nacksLocked(d, delay)
}

func (j *judge) nacksLocked(d *delivery, delay time.Duration) {
	d.due = j.now() + delay
	d.throwAway()
}

// ackSync calls AckSync: once it has returned nil the record never comes again.
func (j *judge) ackSync(d *delivery, handle *ackpolicy.Delivery, ctx context.Context) {
	j.mu.Lock()
	if !j.gone[d.term.m] {
		d.ack("AckSync")
	}
	j.mu.Unlock()
	err := handle.AckSync(ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(d.term.m, d.part, d.offset, "AckSync of attempt %d: %v", d.attempt, err)
	if err == nil && !j.gone[d.term.m] {
		d.never = "its AckSync had returned nil"
	}
}

// verb calls one that acks, or not.
func (j *judge) verb(d *delivery, name string, acks bool, call func() bool) {
	j.mu.Lock()
	if acks && !j.gone[d.term.m] {
		d.ack(name)
	}
	j.mu.Unlock()
	done := call()
	j.note(d.term.m, d.part, d.offset, "%s of attempt %d: %t", name, d.attempt, done)
}

// below calls AckCumulative.
func (j *judge) below(d *delivery, call func() bool) {
	j.mu.Lock()
	if !j.gone[d.term.m] {
		for _, o := range d.term.delivered {
			if o.offset <= d.offset && (o.done || o == d) {
				o.ack("AckCumulative")
			}
		}
		for _, o := range j.book[d.part][:min(d.offset, int64(len(j.book[d.part])))] { // what an earlier owner had nacked, and was not due yet
			if open, ok := d.term.base.openOf(o.offset); ok && !open.Due.IsZero() && d.term.delivered[o.offset] == nil {
				o.silent = true
				o.ack("AckCumulative")
			}
		}
	}
	j.mu.Unlock()
	done := call()
	j.note(d.term.m, d.part, d.offset, "AckCumulative of attempt %d: %t", d.attempt, done)
}
