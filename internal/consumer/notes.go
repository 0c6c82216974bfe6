package consumer

import (
	"errors"
	"slices"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// note is a line about a partition that others are likely to have at the same time:
// when a session ends, all of them drain. They share one line.
type note struct {
	text string
	err  string // of an error line, before what was left; "": it is an info line
	left partition.Left
	// handlers that have not finished, of which the record may be settled
	running int
	fields  watermill.LogFields // where it is the only partition
}

// noted is a note with those of other partitions.
type noted struct {
	note
	places []place
}

// note has a line written soon.
func (h *health) note(at place, n note) {
	h.mu.Lock()
	i := slices.IndexFunc(h.notes, func(o *noted) bool { return o.text == n.text })
	if i < 0 {
		h.notes = append(h.notes, &noted{note: n, places: []place{at}})
	} else {
		of := h.notes[i]
		of.places = append(of.places, at)
		of.left, of.running = sum(of.left, n.left), of.running+n.running
	}
	h.mu.Unlock()
	wait.Wake(h.kick)
}

func sum(a, b partition.Left) partition.Left {
	return partition.Left{
		Running: a.Running + b.Running, Pending: a.Pending + b.Pending, Nacked: a.Nacked + b.Nacked,
		Letters: a.Letters + b.Letters, Unmarked: a.Unmarked + b.Unmarked,
	}
}

// tellNotes writes the lines of the notes.
func (h *health) tellNotes() {
	h.mu.Lock()
	notes := h.notes
	h.notes = nil
	h.mu.Unlock()
	for _, n := range notes {
		fields := watermill.LogFields{
			"handlers_running": n.running, "pending": n.left.Pending, "nacked": n.left.Nacked, "letters": n.left.Letters, "unmarked": n.left.Unmarked,
		}
		if len(n.places) == 1 {
			fields["kafka_partition"] = n.places[0].partition
			if h.several {
				fields["topic"] = n.places[0].topic
			}
			fields = fields.Add(n.fields)
		} else {
			fields["kafka_partitions"] = listed(n.places, h.several)
		}
		what := describe(n.left)
		if what == "" {
			what = "none"
		}
		if n.err != "" {
			h.logger.Error(n.text, errors.New(n.err+what), fields)
		} else {
			h.logger.Info(n.text+": "+what, fields)
		}
	}
}

// tellReleased says what an assignment has left.
func (c *Claim) tellReleased(r *Released) {
	c.logger.Debug("Partition released", watermill.LogFields{"cause": r.Cause.Error(), "committed": r.Committed})
	n := note{left: r.Left, running: r.Running, fields: watermill.LogFields{
		"cause": r.Cause.Error(), "watermark": r.Committed, "first_left_offset": r.Left.First,
	}}
	switch what := describe(r.Left); {
	case r.TimedOut && what != "":
		n.text, n.err = "Partition released before everything was settled: the next owner delivers again what was not", "drain timed out, records left: "
	case r.TimedOut && r.Running > 0:
		n.text, n.err = "Partition released before all handlers finished: their records are settled, and do not come again", "drain timed out, records left: "
	case what != "":
		n.text = "Partition released with unsettled records: the next owner delivers them again"
	}
	if n.text != "" {
		c.health.note(c.place, n)
	}
	c.cfg.Events.Released(c.topic, c.partition, *r)
}
