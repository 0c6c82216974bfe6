package consumer

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// tell writes the lines that are due: one for each symptom that has had none in this
// outage, and every now and then one for all.
func (h *health) tell() {
	type line struct {
		text   string
		err    error
		fields watermill.LogFields
	}
	var lines []line
	h.mu.Lock()
	var ripe []symptom
	for k := range symptoms {
		if h.ripe(k) {
			ripe = append(ripe, k)
		}
	}
	write := func(k symptom) {
		f, fields := h.latest(k)
		var also []string
		for _, other := range ripe {
			if other != k {
				also = append(also, named(other, h.open[other], h.several))
			}
		}
		if also != nil {
			fields["failing_too"] = strings.Join(also, ", ")
		}
		h.reported[k], h.due = true, false
		lines = append(lines, line{f.textOf(k), f.err, h.report.AddTo(fields)})
	}
	for _, k := range ripe {
		if !h.reported[k] {
			write(k)
		}
	}
	if h.due && len(ripe) > 0 {
		write(ripe[0])
	}
	h.mu.Unlock()
	for _, l := range lines {
		h.logger.Error(l.text, h.explain(l.err), l.fields)
	}
}

// ripe reports whether a symptom is there that is to be reported.
func (h *health) ripe(k symptom) bool {
	if h.closing() && k <= committing {
		return false // what matters by now is what it leads to
	}
	for _, f := range h.open[k] {
		if time.Since(f.since) >= kinds[k].quiet {
			return true
		}
	}
	return false
}

// latest returns the last failure of a symptom, and the fields that name the partitions.
func (h *health) latest(k symptom) (last *failure, fields watermill.LogFields) {
	where := everywhere
	for at, f := range h.open[k] {
		if last == nil || f.last.After(last.last) {
			last, where = f, at
		}
	}
	if len(h.open[k]) == 1 {
		return last, h.fieldsOf(last, where)
	}
	return last, watermill.LogFields{"kafka_partitions": listed(slices.Collect(maps.Keys(h.open[k])), h.several)}
}

func (f *failure) textOf(k symptom) string {
	if f.text != "" {
		return f.text
	}
	return kinds[k].text
}

func (h *health) fieldsOf(f *failure, at place) watermill.LogFields {
	fields := watermill.LogFields{}
	if h.several && at.topic != "" {
		fields["topic"] = at.topic
	}
	if at.partition >= 0 {
		fields["kafka_partition"] = at.partition
	}
	return fields.Add(f.fields)
}

// named is a symptom's name with the partitions that have it.
func named[V any](k symptom, at map[place]V, several bool) string {
	places := slices.DeleteFunc(slices.Collect(maps.Keys(at)), func(p place) bool { return p.partition < 0 })
	if len(places) == 0 {
		return kinds[k].name
	}
	return kinds[k].name + " (" + listed(places, several) + ")"
}
