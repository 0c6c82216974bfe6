package ackpolicyweb

import (
	"fmt"
	"strconv"
	"strings"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

const (
	inPartition = 1000 // records of a window that are looked at
	mostLanes   = 50
	mostRows    = 200
)

// partition renders the page of a partition.
func (h *Handler) partition(s *snapshot, q *query) node {
	main := node{id: "main", open: `<main id="main" tabindex="-1">`, end: `</main>`}
	sub, p := s.find(q)
	where := place(q.topic, q.partition)
	if p == nil {
		v := verdict{Tone: "note", Text: where + " is not assigned to this process now.", Of: where, Back: true}
		main.kids = []node{{id: "verdict", html: html("verdict", v)}}
		return main
	}
	w := window{}
	if p.Unsettled > 0 {
		w.records, w.sections, _ = h.options.Subscribers[q.subscriber].Window(q.topic, q.partition, inPartition)
	}
	f := finder{h: h, s: s, sub: sub}
	f.subscription()
	f.partition(p, w.records)
	f.grouped()
	for _, t := range s.ended() {
		if t.sub == sub && t.partition == p.Partition || t.partition < 0 && t.Record == clean(sub.Topic, 300) {
			f.found = append(f.found, t)
		}
	}
	all := worstFirst(f.found)
	quiet := "Nothing holds " + where + "."
	v := verdictOf(all, quiet, where)
	v.Back = true
	main.kids = append(main.kids,
		node{id: "verdict", html: html("verdict", v)},
		troubleNode(all),
		node{id: "window", html: html("window", h.windowOf(s, sub, p, &w))},
	)
	if r := h.chosen(s, sub, p, &w, q.offset); r != nil {
		main.kids = append(main.kids, node{id: "record", html: html("record", r)})
	}
	if p.Unsettled > 0 {
		if sub.of.Ordering != ackpolicy.Unordered {
			l, more := h.lanesOf(sub, p, w.records, mostLanes)
			main.kids = append(main.kids, node{id: "lanes", html: html("lanes", lanesView{l, more, sub.of.Ordering == ackpolicy.OrderByKey})})
		}
		main.kids = append(main.kids, h.records(s, sub, p, &w))
	}
	if n, ok := h.options.Timeline.node(q.topic, q.partition); ok {
		main.kids = append(main.kids, n)
	}
	main.kids = append(main.kids, node{id: "words", html: html("words", nil)})
	return main
}

type lanesView struct {
	Lanes []lane
	More  int
	ByKey bool
}

// windowView is a partition's window, drawn and in numbers.
type windowView struct {
	Strip            strip
	From, Next       string
	Committed        string
	Watermark, End   string
	Beyond           string // records of the log that are not fetched yet
	Legend           []legend
	Numbers          []number
	Act              *actions
	Since            moment
	Topic, Handler   string
	Ordering, Paused string
	Empty            bool
}

type legend struct{ Class, Name, N string }

func (h *Handler) windowOf(s *snapshot, sub *subscription, p *ackpolicy.PartitionState, w *window) *windowView {
	offset := func(n int64) string {
		if n < 0 {
			return "not known"
		}
		return strconv.FormatInt(n, 10)
	}
	v := &windowView{
		From: offset(from(p)), Next: offset(p.Next), Committed: offset(p.Committed), Watermark: offset(p.Watermark), End: offset(p.HighWatermark),
		Since: momentOf(p.Since, s.at), Topic: clean(sub.Topic, 300), Handler: clean(sub.Handler, 100), Ordering: orderingText(sub.of.Ordering),
		Empty: p.Next <= from(p), Paused: pauses(p),
	}
	if n := p.HighWatermark - p.Next; n > 0 {
		v.Beyond = count(n)
	}
	v.Strip = draw(p, w, 256, 48)
	settled := p.Next - p.Watermark - int64(p.Unsettled)
	v.Legend = []legend{
		{"settled", "settled above the watermark", count(max(0, settled))},
		{"queued", "queued", count(p.Queued + p.Delayed)}, {"flight", "in flight", count(p.InFlight)},
		{"pending", "pending", count(p.Pending)}, {"nacked", "nacked", count(p.Nacked)}, {"letter", "letters", count(p.Letters)},
	}
	if n := p.Watermark - p.Committed; p.Committed >= 0 && n > 0 {
		v.Legend = append([]legend{{"passed", "settled, not committed yet", count(n)}}, v.Legend...)
	}
	v.Strip.Label = fmt.Sprintf("Window of %s from offset %s to %s:", place(sub.Topic, p.Partition), v.From, v.Next)
	for _, l := range v.Legend {
		v.Strip.Label += " " + l.N + " " + l.Name + ","
	}
	v.Strip.Label = v.Strip.Label[:len(v.Strip.Label)-1] + "."
	bound := "no bound"
	if sub.MaxUncommitted > 0 {
		bound = count(sub.MaxUncommitted)
	}
	v.Numbers = []number{
		{"not settled", count(p.WorkLag), ""},
		{"lag", count(p.CommittedLag), ""},
		{"in flight", fmt.Sprintf("%s of %s", count(p.InFlight), count(sub.MaxInFlight)), ""},
		{"uncommitted", fmt.Sprintf("%s of %s", count(p.Uncommitted), bound), ""},
		{"in memory", size(p.Bytes), ""},
	}
	if p.LedgerRoom > 0 {
		v.Numbers = append(v.Numbers, number{"room of the commit", fmt.Sprintf("%s of %s bytes", count(p.LedgerBytes), count(p.LedgerRoom)), tone(p.Unmarked, "warn")})
	}
	if h.options.AllowActions != nil {
		v.Act = &actions{
			ID: "w", Subscriber: sub.owner, Topic: sub.Topic, Partition: p.Partition, Record: place(sub.Topic, p.Partition), Pause: !p.Held, Resume: p.Held, Back: "partition",
		}
	}
	return v
}

// recordView is a record with its tries.
type recordView struct {
	Name, Title string
	Settled     bool
	Status      string
	Tone        string
	Since       moment
	Next        string
	Attempt     string
	Key         string
	Handler     string
	Rejected    string
	Error       string
	Tries       []tryView
	Left        int // deliveries that are not listed
	Act         *actions
	Holds       bool
}

type tryView struct {
	Attempt string
	Began   moment
	Took    string
	Error   string
}

// chosen returns the record that is looked at: the one at an offset, or the one that holds the partition.
func (h *Handler) chosen(s *snapshot, sub *subscription, p *ackpolicy.PartitionState, w *window, offset int64) *recordView {
	r := p.Oldest
	if offset >= 0 && (r == nil || r.Offset != offset) {
		r = nil
		for i := range w.records {
			if w.records[i].Offset == offset {
				r = &w.records[i]
			}
		}
		if r == nil {
			text := "settled"
			switch {
			case offset >= p.Next:
				text = "not fetched yet"
			case offset >= p.Watermark && len(w.records) < p.Unsettled:
				text = "settled, or too far behind the watermark to be shown"
			}
			return &recordView{Name: name(sub.Topic, p.Partition, offset), Settled: true, Status: text}
		}
	}
	if r == nil {
		return nil
	}
	v := &recordView{
		Name: name(sub.Topic, p.Partition, r.Offset), Status: r.Status.String(), Tone: toneOf(p, r), Since: momentOf(r.Since, s.at),
		Attempt: count(r.Attempt), Key: strings.TrimPrefix(h.key(r.Key), "key "), Handler: clean(sub.Handler, 100), Error: textOf(r.LastErr), Rejected: textOf(r.Rejected),
		Act: h.actionsFor(sub, p, r, "record-"+strconv.FormatInt(r.Offset, 10), "partition"), Holds: p.Oldest != nil && p.Oldest.Offset == r.Offset,
	}
	if !r.NextDelivery.IsZero() {
		v.Next = in(r.NextDelivery.Sub(s.at)) + ", at " + clock(r.NextDelivery)
	}
	for _, t := range r.Tries {
		try := tryView{Attempt: count(t.Attempt), Began: momentOf(t.Began, s.at), Error: textOf(t.Err), Took: "not known"}
		if !t.Began.IsZero() && !t.Ended.IsZero() {
			try.Took = took(t.Ended.Sub(t.Began))
		}
		v.Tries = append(v.Tries, try)
	}
	if len(r.Tries) > 0 {
		v.Left = r.Tries[len(r.Tries)-1].Attempt - len(r.Tries)
	}
	return v
}

// recordRow is a record in the list.
type recordRow struct {
	ID, At, Link, Status, Tone, For, Attempt, Key, Next, Error string
	Current                                                    bool
}

type recordsView struct {
	Shown, All string
	Cut        bool
}

func (h *Handler) records(s *snapshot, sub *subscription, p *ackpolicy.PartitionState, w *window) node {
	rows := w.records[:min(len(w.records), mostRows)]
	v := recordsView{count(len(rows)), count(p.Unsettled), len(rows) < p.Unsettled}
	n := node{id: "records", open: html("records-open", v), end: html("table-end", nil) + "</section>"}
	for i := range rows {
		r := &rows[i]
		row := recordRow{
			ID: fmt.Sprintf("o-%d", r.Offset), At: at(r.Offset), Link: link(sub.owner, sub.Topic, p.Partition, r.Offset), Status: r.Status.String(),
			Tone: toneOf(p, r), For: took(s.at.Sub(r.Since)), Attempt: count(r.Attempt), Key: strings.TrimPrefix(h.key(r.Key), "key "), Error: textOf(r.LastErr),
		}
		if !r.NextDelivery.IsZero() {
			row.Next = in(r.NextDelivery.Sub(s.at))
		}
		n.kids = append(n.kids, node{id: row.ID, html: html("record-row", &row)})
	}
	return n
}

func at(offset int64) string { return "@" + strconv.FormatInt(offset, 10) }

// rank says how bad a record's state is, 0 if it is not.
func rank(p *ackpolicy.PartitionState, r *ackpolicy.RecordState) int {
	switch {
	case len(r.Tries) > 0, r.Status == ackpolicy.RecordRejecting, p.Slow != nil && p.Slow.Offset == r.Offset:
		return 2
	case r.Status == ackpolicy.RecordPending:
		return 1
	}
	return 0
}

func toneOf(p *ackpolicy.PartitionState, r *ackpolicy.RecordState) string {
	return [...]string{"", "note", "warn"}[rank(p, r)]
}
