package ledger

import (
	"encoding/binary"
	"math"
	"time"
)

// Notes stand behind the open records, as sections. Each has a number that says what it is
// about, and its length: a reader skips what it does not know.
const (
	sectionDelays   = 1 + iota // Open.Delay
	sectionErrs                // Open.Err
	sectionRejected            // Open.Rejected
)

// How many of the sections a text has.
const (
	noNotes = iota
	withRejects
	withDelays
	withErrs
)

// mostMillis limits times and delays: 68 years.
const mostMillis = math.MaxInt32 * 1000

// notes returns which sections are needed for all that l has.
func (l *Ledger) notes() int {
	notes := noNotes
	for i := range l.Open {
		switch o := &l.Open[i]; {
		case o.Err != "":
			return withErrs
		case o.Delay > 0:
			notes = withDelays
		case o.Rejected != "":
			notes = max(notes, withRejects)
		}
	}
	return notes
}

// appendNotes writes the number of sections, and the sections.
func (e *encoder) appendNotes(to []byte) []byte {
	to = binary.AppendUvarint(to, uint64(e.notes))
	to = e.appendSection(to, sectionRejected, func(to []byte, o *Open) ([]byte, bool) { return appendText(to, o.Rejected) })
	if e.notes >= withDelays {
		to = e.appendSection(to, sectionDelays, func(to []byte, o *Open) ([]byte, bool) {
			millis := min((o.Delay+time.Millisecond-1)/time.Millisecond, mostMillis)
			return binary.AppendUvarint(to, uint64(millis)), millis > 0
		})
	}
	if e.notes >= withErrs {
		to = e.appendSection(to, sectionErrs, func(to []byte, o *Open) ([]byte, bool) { return appendText(to, o.Err) })
	}
	return to
}

func appendText(to []byte, text string) (with []byte, ok bool) {
	return append(binary.AppendUvarint(to, uint64(len(text))), text...), text != ""
}

// appendSection writes, for each open record that has a note, its distance from the one before
// and the note.
func (e *encoder) appendSection(to []byte, section uint64, note func(to []byte, o *Open) ([]byte, bool)) []byte {
	var all []byte
	last := 0
	for i := range e.l.Open[:e.open] {
		if with, ok := note(binary.AppendUvarint(all, uint64(i-last)), &e.l.Open[i]); ok {
			all, last = with, i+1
		}
	}
	to = binary.AppendUvarint(to, section)
	return append(binary.AppendUvarint(to, uint64(len(all))), all...)
}

// notes reads the sections.
func (d *decoder) notes(open []Open) {
	for n := d.count(2); n > 0 && !d.failed; n-- {
		section := d.uvarint()
		s := decoder{data: d.bytes(d.count(1))}
		switch section {
		case sectionDelays:
			s.section(open, func(o *Open) bool {
				millis := s.uvarint()
				o.Delay = time.Duration(min(millis, mostMillis)) * time.Millisecond
				return millis > 0 && millis <= mostMillis
			})
		case sectionErrs:
			s.section(open, func(o *Open) bool { return s.text(&o.Err) })
		case sectionRejected:
			s.section(open, func(o *Open) bool { return s.text(&o.Rejected) })
		}
		if s.failed {
			d.fail()
		}
	}
}

func (d *decoder) text(to *string) bool {
	*to = string(d.bytes(d.count(1)))
	return *to != ""
}

func (d *decoder) section(open []Open, note func(o *Open) bool) {
	for at := 0; len(d.data) > 0; at++ {
		distance := d.uvarint()
		if distance >= uint64(len(open)-at) {
			d.fail()
			return
		}
		at += int(distance)
		if !note(&open[at]) {
			d.fail()
			return
		}
	}
}
