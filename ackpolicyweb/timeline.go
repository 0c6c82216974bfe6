package ackpolicyweb

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

const (
	mostHappened = 200             // that are kept
	mostShown    = 40              // of them on a page
	together     = 5 * time.Second // of the same kind and topic share a line for so long
)

// Timeline keeps what happened lately, for Options.Timeline. The zero value works.
type Timeline struct {
	mu    sync.Mutex
	all   []happened // the newest last
	count int        // all that there ever were
}

// happened is something that happened, to one partition or to several within a moment.
type happened struct {
	number     int
	at         time.Time
	tone       string
	kind       string
	topic      string
	partitions []int32
	times      int
	last       string // more about the last one; it names the record
}

// Hooks returns the hooks that report to the timeline: assignments and revocations, dead letters, failures and
// actions: for ackpolicy.JoinHooks. It leaves out Settled and Committed, which are called for each record and
// each commit.
func (t *Timeline) Hooks() (h ackpolicy.Hooks) {
	h.Assigned = func(e ackpolicy.AssignedEvent) {
		t.add("good", "assigned", e.Topic, e.Partition, fmt.Sprintf("from %s on", name(e.Topic, e.Partition, e.Start)))
	}
	h.Revoked = func(e ackpolicy.RevokedEvent) {
		kind, tone, text := "revoked", "note", "all that was delivered is settled"
		if errors.Is(e.Cause, ackpolicy.ErrClosing) {
			kind = "closed"
		}
		if e.FirstLeft >= 0 {
			text = fmt.Sprintf("left from %s on: %d running, %d pending, %d nacked, %d letters", name(e.Topic, e.Partition, e.FirstLeft), e.Running, e.Pending, e.Nacked, e.Letters)
		}
		if e.Err != nil {
			tone, text = "bad", "the last commit is not confirmed: "+textOf(e.Err)
		}
		t.add(tone, kind, e.Topic, e.Partition, text)
	}
	h.DeadLettered = func(e ackpolicy.DeadLetteredEvent) {
		kind, tone, text := "letter stored", "note", "reason: "+textOf(e.Reason)
		switch {
		case e.GivenUp:
			kind, tone, text = "letter given up", "bad", textOf(e.Err)
		case e.Err != nil:
			kind, tone, text = "letter not stored", "warn", textOf(e.Err)
		}
		t.add(tone, kind, e.Topic, e.Partition, name(e.Topic, e.Partition, e.Offset)+", "+text)
	}
	h.CommitFailed = func(e ackpolicy.CommitFailedEvent) {
		t.add("warn", "commit failed", e.Topic, e.Partition, textOf(e.Err))
	}
	h.Blocked = func(e ackpolicy.BlockedEvent) {
		t.add("bad", clean(e.Bound, 50)+" reached", e.Topic, e.Partition, "before "+name(e.Topic, e.Partition, e.Offset)+", "+clean(e.State, 200))
	}
	h.FetchStalled = func(e ackpolicy.FetchStalledEvent) {
		t.add("bad", "fetch stalled", e.Topic, e.Partition, "at "+name(e.Topic, e.Partition, e.Offset))
	}
	h.Undecodable = func(e ackpolicy.UndecodableEvent) {
		t.add("warn", "not decoded", e.Topic, e.Partition, name(e.Topic, e.Partition, e.Offset)+", "+textOf(e.Err))
	}
	h.PositionReset = func(e ackpolicy.PositionResetEvent) {
		t.add("bad", "position reset", e.Topic, e.Partition, fmt.Sprintf("from %d to %s", e.Stored, name(e.Topic, e.Partition, e.Start)))
	}
	h.Unconfirmed = func(e ackpolicy.UnconfirmedEvent) {
		t.add("bad", "not confirmed", e.Topic, e.Partition, name(e.Topic, e.Partition, e.Offset)+", "+textOf(e.Err))
	}
	h.HandlerSlow = func(e ackpolicy.HandlerSlowEvent) {
		t.add("bad", "slow handler", e.Topic, e.Partition, name(e.Topic, e.Partition, e.Offset)+", for "+took(e.For))
	}
	h.Acted = func(e ackpolicy.ActedEvent) {
		text := "by " + clean(e.By, 100)
		if e.Offset >= 0 {
			text += ", " + name(e.Topic, e.Partition, e.Offset)
		}
		if e.Reason != "" {
			text += ": " + clean(e.Reason, 200)
		}
		if l := e.Limits; l.MaxInFlight != 0 {
			text += ", in flight: " + count(l.MaxInFlight)
		}
		if l := e.Limits; l.MaxDeliveries != 0 {
			text += ", deliveries: " + count(l.MaxDeliveries)
		}
		if l := e.Limits; l.MaxPerSecond < 0 {
			text += ", per second: no limit"
		} else if l.MaxPerSecond > 0 {
			text += ", per second: " + perSecond(l.MaxPerSecond)
		}
		t.add("note", string(e.Action), e.Topic, e.Partition, text)
	}
	return h
}

// add takes note of something. What happens to several partitions at the same time shares a line.
func (t *Timeline) add(tone, kind, topic string, partition int32, text string) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.all) - 1; i >= 0 && now.Sub(t.all[i].at) < together; i-- {
		if e := &t.all[i]; e.kind == kind && e.topic == topic && e.tone == tone {
			e.last = text
			if e.times++; !slices.Contains(e.partitions, partition) {
				e.partitions = append(slices.Clip(e.partitions), partition) // a page may still read the old ones
			}
			return
		}
	}
	t.count++
	t.all = append(t.all, happened{t.count, now, tone, kind, topic, []int32{partition}, 1, text})
	if len(t.all) > mostHappened {
		t.all = slices.Clone(t.all[1:])
	}
}

// happenedView is a line of the page.
type happenedView struct {
	ID, Stamp, Clock, Tone, Kind, Where, Text string
}

// node renders what happened to a partition, or to all if the topic is "". t may be nil.
func (t *Timeline) node(topic string, partition int32) (n node, ok bool) {
	if t == nil {
		return node{}, false
	}
	t.mu.Lock()
	all := slices.Clone(t.all)
	t.mu.Unlock()
	n = node{id: "happened", open: html("happened-open", nil), end: html("table-end", nil) + "</section>"}
	for _, e := range slices.Backward(all) {
		if topic != "" && (e.topic != topic || !slices.Contains(e.partitions, partition) && e.partitions[0] >= 0) {
			continue
		}
		v := happenedView{
			ID: fmt.Sprintf("h-%d", e.number), Stamp: e.at.UTC().Format(time.RFC3339), Clock: clock(e.at), Tone: e.tone, Kind: e.kind,
			Where: clean(e.topic, 300), Text: e.last,
		}
		if e.partitions[0] >= 0 {
			v.Where += "/" + list(e.partitions)
		}
		if e.times > 1 {
			v.Text = fmt.Sprintf("%s times, the last: %s", count(e.times), v.Text)
		}
		if n.kids = append(n.kids, node{id: v.ID, html: html("happened", &v)}); len(n.kids) == mostShown {
			break
		}
	}
	return n, len(n.kids) > 0
}
