package ackpolicyweb

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// held is records of a partition that are held for the same reason: the oldest one, and how many there are.
type held struct {
	first *ackpolicy.RecordState
	n     int
}

// partition looks at a partition and what it holds.
func (f *finder) partition(p *ackpolicy.PartitionState, records []ackpolicy.RecordState) {
	if len(records) == 0 && p.Oldest != nil {
		records = []ackpolicy.RecordState{*p.Oldest}
	}
	var nacked, pending, letters, confirming held
	for i := range records {
		r := &records[i]
		age := f.s.at.Sub(r.Since)
		var to *held
		switch {
		case p.Slow != nil && r.Offset == p.Slow.Offset:
		case r.Status == ackpolicy.RecordRejecting:
			if age > brief {
				to = &letters
			}
		case r.Status == ackpolicy.RecordPending:
			if age > long {
				to = &pending
			}
		case r.Status == ackpolicy.RecordConfirming:
			if age > brief {
				to = &confirming
			}
		case len(r.Tries) > 1, len(r.Tries) == 1 && f.s.at.Sub(r.Tries[0].Ended) > brief:
			to = &nacked
		}
		if to == nil {
			continue
		}
		if to.n++; to.first == nil {
			to.first = r
		}
	}
	f.slow(p)
	f.nacked(p, nacked)
	f.letters(p, letters)
	f.record(p, pending, "pending", "warn", "Pending", "pending", "Its handler returned without settling it.",
		"Under the policy Manual the application settles it: find the path that does not. Retry hands it to the handler again.")
	f.record(p, confirming, "confirming", "warn", "Confirming", "not confirmed", "It is acked under ConfirmFirst, and its commit is not confirmed yet: its handler has not begun.",
		"Check the group's coordinator.")
	f.paused(p)
	if p.CommitErr != nil {
		f.commits, f.commitErr = append(f.commits, p.Partition), p.CommitErr
	}
	if p.Unmarked > 0 {
		f.unmarked, f.left = append(f.unmarked, p.Partition), f.left+p.Unmarked
	}
}

func (f *finder) slow(p *ackpolicy.PartitionState) {
	f.record(p, held{p.Slow, p.SlowHandlers}, "slow", "bad", "Slow handler", "slow handler", "Its handler has not returned.",
		"Look at what the handler waits for: a goroutine dump names it. Given up, the record is settled at once, and what waits behind it continues when the handler returns.")
}

func (f *finder) nacked(p *ackpolicy.PartitionState, of held) {
	text := ""
	if of.first != nil {
		switch n := len(of.first.Tries); {
		case of.first.Attempt > n && of.first.Status != ackpolicy.RecordInFlight:
			text = plural(of.first.Attempt, "delivery has", "deliveries have") + " not settled it."
		default:
			text = plural(max(of.first.Attempt-1, n), "delivery has", "deliveries have") + " not settled it."
		}
	}
	where := "there is no dead letter destination"
	if f.sub.DeadLetter {
		where = "it becomes a dead letter"
	}
	f.record(p, of, "held", "bad", "Held", "held", text,
		"Fix what the error names: the next delivery settles it, or retry it now. Or give it up: "+where+".")
}

func (f *finder) letters(p *ackpolicy.PartitionState, of held) {
	f.record(p, of, "letter", "bad", "Dead letter", "letter waits", "It is rejected, and its dead letter is not stored yet.",
		"Bring the dead letter destination back, or change the setting of its topic that the log names: look for the lines that begin with \"Dead letter\". It is tried again by itself.")
}

// record adds a trouble of a record.
func (f *finder) record(p *ackpolicy.PartitionState, of held, id, tone, kind, word, text, do string) {
	if of.first == nil {
		return
	}
	r, sub := of.first, f.sub
	t := trouble{
		ID: fmt.Sprintf("%d-%d-%s", p.Partition, r.Offset, id), Tone: tone, Kind: kind, word: word, Text: text, Do: do,
		Record: name(sub.Topic, p.Partition, r.Offset), Link: link(sub.owner, sub.Topic, p.Partition, r.Offset),
		began: began(r), partition: p.Partition, Facts: []string{r.Status.String()}, Error: textOf(r.LastErr),
	}
	if !r.NextDelivery.IsZero() {
		t.Facts[0] += ", next delivery " + in(r.NextDelivery.Sub(f.s.at))
	}
	if r.Attempt > 0 {
		attempt := "attempt " + count(r.Attempt)
		if sub.MaxDeliveries > 0 {
			attempt += " of " + count(sub.MaxDeliveries)
		}
		t.Facts = append(t.Facts, attempt)
	}
	if k := f.h.key(r.Key); k != "" {
		t.Facts = append(t.Facts, k)
	}
	if sub.Handler != "" {
		t.Facts = append(t.Facts, "handler "+clean(sub.Handler, 100))
	}
	if p.Queued > 0 {
		t.Facts = append(t.Facts, plural(p.Queued, "record of the partition waits", "records of the partition wait"))
	}
	if of.n > 1 {
		t.Facts = append(t.Facts, plural(of.n-1, "other is in the same state", "others are in the same state"))
	}
	if r.Rejected != nil {
		t.Facts = append(t.Facts, "it is given up when its turn comes")
	}
	t.Act = f.h.actionsFor(sub, p, r, "t-"+strconv.Itoa(sub.number)+"-"+t.ID, "")
	f.add(t)
}

// began returns when a record's trouble began, as far as that is known.
func began(r *ackpolicy.RecordState) time.Time {
	if len(r.Tries) > 0 {
		if t := r.Tries[0]; !t.Began.IsZero() {
			return t.Began
		}
		return r.Tries[0].Ended
	}
	return r.Since
}

// actionsFor returns the buttons of a record; nil: there are none.
func (h *Handler) actionsFor(sub *subscription, p *ackpolicy.PartitionState, r *ackpolicy.RecordState, id, back string) *actions {
	if h.options.AllowActions == nil || p.Draining {
		return nil
	}
	a := &actions{
		ID: id, Subscriber: sub.owner, Topic: sub.Topic, Partition: p.Partition, Offset: r.Offset, Record: name(sub.Topic, p.Partition, r.Offset), Back: back,
		DeadLetter: sub.DeadLetter,
	}
	switch r.Status {
	case ackpolicy.RecordParked, ackpolicy.RecordDelayed, ackpolicy.RecordPending:
		a.Retry, a.Reject = true, true
	case ackpolicy.RecordQueued, ackpolicy.RecordInFlight, ackpolicy.RecordNacking, ackpolicy.RecordDue:
		a.Reject = r.Rejected == nil
	}
	if !a.Retry && !a.Reject {
		return nil
	}
	return a
}

// paused looks at why a partition is paused.
func (f *finder) paused(p *ackpolicy.PartitionState) {
	sub, since := f.sub, p.Since
	if p.Oldest != nil {
		since = began(p.Oldest)
	}
	t := trouble{
		Record: place(sub.Topic, p.Partition), Link: link(sub.owner, sub.Topic, p.Partition, -1), partition: p.Partition, began: since,
	}
	for _, why := range p.Paused {
		if strings.Contains(why, "MaxBufferedBytes") && f.s.at.Sub(p.Moved) > brief {
			if f.memory = append(f.memory, p.Partition); f.memorySince.IsZero() || since.Before(f.memorySince) {
				f.memorySince = since
			}
		}
	}
	if p.Undecodable {
		t := t
		t.ID, t.Tone, t.Kind, t.word, t.began = fmt.Sprintf("%d-batch", p.Partition), "bad", "Broken batch", "batch cannot be decoded", p.Moved
		t.Record = name(sub.Topic, p.Partition, p.Next)
		t.Text = "A batch of records that begins at this offset cannot be decoded, so nothing behind it is read."
		t.Do = "Restore the segment from a replica, or skip the batch. It is looked at again every 15 s."
		f.add(t)
	}
	if p.Blocked && f.s.at.Sub(p.Moved) > brief {
		t := t
		t.ID, t.Tone, t.Kind, t.word = fmt.Sprintf("%d-full", p.Partition), "bad", "Bound reached", "MaxUncommitted reached"
		t.Text = fmt.Sprintf("MaxUncommitted (%s) is reached: nothing more of the partition is handed out", count(sub.MaxUncommitted))
		if p.Oldest != nil {
			t.Text += " before " + name(sub.Topic, p.Partition, p.Oldest.Offset) + " is settled"
		}
		t.Text += "."
		t.Do = "See the record that holds the partition. If commits fail, it continues once one succeeds."
		f.add(t)
	}
	if p.Held {
		t.ID, t.Tone, t.Kind, t.word = fmt.Sprintf("%d-paused", p.Partition), "note", "Paused", "paused"
		t.Text, t.Do, t.began = "Somebody paused it: nothing is fetched or handed out. What runs continues.", "Resume it when you are done. The log says who paused it.", time.Time{}
		if f.h.options.AllowActions != nil {
			t.Act = &actions{ID: fmt.Sprintf("t-%d-%s", sub.number, t.ID), Subscriber: sub.owner, Topic: sub.Topic, Partition: p.Partition, Record: t.Record, Resume: true}
		}
		f.add(t)
	}
}
