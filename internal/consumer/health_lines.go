package consumer

import (
	"fmt"
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
				also = append(also, at(other, h.open[other]))
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
	for p, f := range h.open[k] {
		if last == nil || f.last.After(last.last) {
			last, where = f, p
		}
	}
	if len(h.open[k]) == 1 {
		return last, last.fieldsOf(where)
	}
	return last, watermill.LogFields{"kafka_partitions": listed(slices.Collect(maps.Keys(h.open[k])))}
}

func (f *failure) textOf(k symptom) string {
	if f.text != "" {
		return f.text
	}
	return kinds[k].text
}

func (f *failure) fieldsOf(p int32) watermill.LogFields {
	fields := watermill.LogFields{}
	if p != everywhere {
		fields["kafka_partition"] = p
	}
	return fields.Add(f.fields)
}

// most is how many partitions a line names.
const most = 10

// listed names partitions: how many, and the first ones.
func listed(partitions []int32) string {
	slices.Sort(partitions)
	var names []string
	for _, p := range partitions[:min(most, len(partitions))] {
		names = append(names, fmt.Sprint(p))
	}
	if len(partitions) > most {
		names = append(names, "…")
	}
	return fmt.Sprintf("%d: %s", len(partitions), strings.Join(names, ", "))
}

// at is a symptom's name with the partitions that have it.
func at[V any](k symptom, partitions map[int32]V) string {
	ps := slices.Collect(maps.Keys(partitions))
	if ps = slices.DeleteFunc(ps, func(p int32) bool { return p == everywhere }); len(ps) == 0 {
		return kinds[k].name
	}
	return kinds[k].name + " (" + listed(ps) + ")"
}
