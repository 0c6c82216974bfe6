package ackpolicyweb

import (
	"cmp"
	"fmt"
	"html/template"
	"strconv"
	"strings"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// rendered is a page, and what it was made of.
type rendered struct {
	main node
	rows map[string]cachedRow
}

// cachedRow is a row of the last overview: most rows are the same again.
type cachedRow struct {
	of   row
	html string
}

// render returns the part of a page that changes.
func (h *Handler) render(q *query) (node, *snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.views[q.show].rows
	s := h.snapshot()
	if q.topic != "" {
		return h.partition(s, q), s
	}
	if v, ok := h.views[q.show]; ok {
		return v.main, s
	}
	v := rendered{rows: map[string]cachedRow{}}
	all := h.troubles(s)
	v.main = h.overview(s, q.show, all, before, v.rows)
	h.views[q.show] = v
	return v.main, s
}

func (q *query) title(s *snapshot) string {
	if q.topic != "" {
		return place(q.topic, q.partition)
	}
	return cmp.Or(strings.Join(groups(s), ", "), "no subscriber")
}

// groups returns the consumer groups that are shown.
func groups(s *snapshot) (all []string) {
	for i := range s.states {
		g := clean(s.states[i].ConsumerGroup, 200)
		if g == "" {
			g = "no consumer group"
		}
		all = append(all, g)
	}
	return all
}

// verdict is the headline, which screen readers announce when it changes.
type verdict struct {
	Tone, Text, Of string
	Back           bool
	Count          int
}

func verdictOf(all []trouble, quiet, of string) verdict {
	v := verdict{Tone: "good", Text: quiet, Of: of}
	var named []string
	paused := 0
	for i := range all {
		if all[i].Tone == "note" {
			if all[i].word == "paused" {
				paused++
			}
			continue
		}
		if v.Count++; v.Tone != "bad" {
			v.Tone = all[i].Tone
		}
		named = append(named, all[i].Kind+": "+all[i].Record)
	}
	if v.Count == 0 {
		if paused > 0 {
			v.Text += " " + plural(paused, "partition is", "partitions are") + " paused."
		}
		return v
	}
	const most = 3
	v.Text = plural(v.Count, "thing needs", "things need") + " attention. " + strings.Join(named[:min(most, len(named))], "; ")
	if v.Count > most {
		v.Text += fmt.Sprintf("; and %d more", v.Count-most)
	}
	v.Text += "."
	return v
}

// troubleNode renders a list of troubles.
func troubleNode(all []trouble) node {
	n := node{id: "trouble", open: html("trouble-open", len(all)), end: html("trouble-end", max(0, len(all)-mostTroubles))}
	for i := range all[:min(len(all), mostTroubles)] {
		n.kids = append(n.kids, node{id: all[i].ID, html: html("trouble", &all[i])})
	}
	return n
}

func (h *Handler) overview(s *snapshot, show string, all []trouble, before, after map[string]cachedRow) node {
	worst := map[string]*trouble{} // by row
	for i := len(all) - 1; i >= 0; i-- {
		if t := &all[i]; t.partition >= 0 {
			worst[rowID(t.sub, t.partition)] = t
		}
	}
	quiet := "Nothing is held, blocked or failing."
	if len(s.subscriptions) == 0 {
		quiet = "Nothing is subscribed to."
	}
	main := node{id: "main", open: `<main id="main" tabindex="-1">`, end: `</main>`}
	main.kids = append(main.kids,
		node{id: "verdict", html: html("verdict", verdictOf(all, quiet, (&query{}).title(s)))},
		troubleNode(all),
		node{id: "filter", html: html("filter", filter(s, show, worst))},
	)
	for i := range s.subscriptions {
		main.kids = append(main.kids, h.table(s, &s.subscriptions[i], show, worst, before, after))
	}
	if n, ok := h.options.Timeline.node("", 0); ok {
		main.kids = append(main.kids, n)
	}
	var promises []promise
	for i := range s.states {
		promises = append(promises, promise{groups(s)[i], strings.Split(clean(s.states[i].Guarantees, 2000), "; ")})
	}
	main.kids = append(main.kids, node{id: "promises", html: html("promises", promises)}, node{id: "words", html: html("words", nil)})
	return main
}

type promise struct {
	Group string
	Says  []string
}

// choice is a filter of the overview.
type choice struct {
	Text, Link string
	N          string
	Current    bool
}

func filter(s *snapshot, show string, worst map[string]*trouble) []choice {
	work, trouble := 0, 0
	for i := range s.subscriptions {
		sub := &s.subscriptions[i]
		for j := range sub.Partitions {
			if sub.Partitions[j].WorkLag > 0 {
				work++
			}
			if worst[rowID(sub, sub.Partitions[j].Partition)] != nil {
				trouble++
			}
		}
	}
	return []choice{
		{"all", "./", count(s.partitions), show == ""},
		{"with work left", "./?show=work", count(work), show == "work"},
		{"in trouble", "./?show=trouble", count(trouble), show == "trouble"},
	}
}

// head is what stands above the partitions of a subscription.
type head struct {
	Number                  int
	Topic, Handler, Member  string
	Group                   string
	Since                   moment
	Consuming               bool
	Numbers                 []number
	Act                     *actions
	Partitions, Hidden      int
	AnyPaused               bool
	Ordering                string
	Generation, MaxInFlight string
}

type number struct{ Name, Value, Tone string }

func (h *Handler) table(s *snapshot, sub *subscription, show string, worst map[string]*trouble, before, after map[string]cachedRow) node {
	id := fmt.Sprintf("s-%d", sub.number)
	body := node{id: id + "-table", end: html("table-end", nil)}
	for i := range sub.Partitions {
		p := &sub.Partitions[i]
		t := worst[rowID(sub, p.Partition)]
		if show == "trouble" && t == nil || show == "work" && p.WorkLag == 0 {
			continue
		}
		r := rowOf(sub, p, &sub.windows[i], t)
		c, same := before[r.ID]
		if !same || c.of != r {
			c = cachedRow{r, html("row", &r)}
		}
		after[r.ID] = c
		body.kids = append(body.kids, node{id: r.ID, html: c.html})
	}
	hd := h.headOf(s, sub)
	hd.Hidden = len(sub.Partitions) - len(body.kids)
	body.open = html("table-open", &hd)
	return node{
		id: id, open: html("section-open", &hd), end: "</section>",
		kids: []node{{id: id + "-head", html: html("head", &hd)}, body},
	}
}

func (h *Handler) headOf(s *snapshot, sub *subscription) head {
	hd := head{
		Number: sub.number, Topic: clean(sub.Topic, 300), Handler: clean(sub.Handler, 100), Member: clean(sub.MemberID, 200),
		Group: clean(sub.of.ConsumerGroup, 200), Since: momentOf(sub.Since, s.at), Consuming: sub.Consuming,
		Partitions: len(sub.Partitions), Generation: count(sub.Generation), MaxInFlight: count(sub.MaxInFlight),
		Ordering: orderingText(sub.of.Ordering),
	}
	var sum ackpolicy.PartitionState
	for i := range sub.Partitions {
		p := &sub.Partitions[i]
		sum.WorkLag += p.WorkLag
		sum.CommittedLag += p.CommittedLag
		sum.InFlight += p.InFlight
		sum.Queued += p.Queued + p.Delayed
		sum.Nacked += p.Nacked
		sum.Pending += p.Pending
		sum.Letters += p.Letters
		hd.AnyPaused = hd.AnyPaused || p.Held
	}
	rate := "…"
	if sub.rate >= 0 {
		rate = count(int64(sub.rate + 0.5))
	}
	hd.Numbers = []number{
		{"settled per second", rate, ""},
		{"not settled", count(sum.WorkLag), ""},
		{"in flight", count(sum.InFlight), ""},
		{"queued", count(sum.Queued), ""},
		{"nacked", count(sum.Nacked), tone(sum.Nacked, "warn")},
		{"pending", count(sum.Pending), ""},
		{"letters", count(sum.Letters), tone(sum.Letters, "warn")},
		{"lag", count(sum.CommittedLag), ""},
		{"memory", size(sub.BufferedBytes) + " of " + size(sub.MaxBufferedBytes), ""},
	}
	if h.options.AllowActions != nil {
		hd.Act = &actions{ID: fmt.Sprintf("s-%d", sub.number), Subscriber: sub.owner, Topic: sub.Topic, Partition: -1, Record: "all of " + hd.Topic, Pause: true, Resume: hd.AnyPaused,
			InFlight: count(sub.MaxInFlight), Deliveries: deliveries(sub), PerSecond: perSecond(sub.MaxPerSecond)}
	}
	return hd
}

// pauses says why a partition is paused.
func pauses(p *ackpolicy.PartitionState) string { return clean(strings.Join(p.Paused, "; "), 500) }

func deliveries(sub *subscription) string {
	if sub.MaxDeliveries == 0 {
		return "no limit"
	}
	return count(sub.MaxDeliveries)
}

func perSecond(limit float64) string {
	if limit == 0 {
		return "no limit"
	}
	return strconv.FormatFloat(limit, 'g', 4, 64)
}

func tone(n int, of string) string {
	if n > 0 {
		return of
	}
	return ""
}

func orderingText(o ackpolicy.Ordering) string {
	switch o {
	case ackpolicy.OrderByKey:
		return "in order per key"
	case ackpolicy.Unordered:
		return "in no order"
	}
	return "in order per partition"
}

func rowID(sub *subscription, partition int32) string {
	return fmt.Sprintf("r-%d-%d", sub.number, partition)
}

// row is a partition in the overview. It is comparable, so that it is rendered again only if it has changed.
type row struct {
	ID, Place, Link  string
	Tone, Now        string
	Record, RecordAt string // the record that the trouble is about, and its link
	Drawing          template.HTML
	InFlight, Queued string
	Nacked, Pending  string
	Letters          string
	WorkLag, Lag     string
}

func rowOf(sub *subscription, p *ackpolicy.PartitionState, w *window, t *trouble) row {
	r := row{
		ID: rowID(sub, p.Partition), Place: place(sub.Topic, p.Partition), Link: link(sub.owner, sub.Topic, p.Partition, -1),
		InFlight: count(p.InFlight), Queued: count(p.Queued + p.Delayed), Nacked: count(p.Nacked), Pending: count(p.Pending), Letters: count(p.Letters),
		WorkLag: count(p.WorkLag), Lag: count(p.CommittedLag),
	}
	switch {
	case p.Draining:
		r.Tone, r.Now = "note", "draining"
	case t != nil:
		r.Tone, r.Now = t.Tone, t.word
		if strings.Contains(t.Record, "@") {
			r.Record, r.RecordAt = t.Record[strings.LastIndexByte(t.Record, '@'):], t.Link
		}
	case len(p.Paused) > 0:
		r.Now = "paused: " + pauses(p)
	case p.WorkLag == 0:
		r.Now = "up to date"
	case p.InFlight > 0:
		r.Now = "working"
	case p.Nacked > 0:
		r.Now = "retrying"
	case p.Pending > 0:
		r.Now = "pending"
	case p.Delayed > 0:
		r.Now = "delayed"
	default:
		r.Now = "behind"
	}
	if p.Unsettled > 0 {
		d := draw(p, w, 64, 12)
		r.Drawing = template.HTML(html("strip", &d))
	}
	return r
}
