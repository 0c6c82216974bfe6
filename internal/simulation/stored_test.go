package simulation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// base is what was stored when a term began.
type base struct {
	offset int64
	ledger *ledger.Ledger // nil: none
}

func (b *base) covers(offset int64) bool {
	if offset < b.offset {
		return true
	}
	if b.ledger == nil {
		return false
	}
	_, marked := ledger.Marked(b.ledger.Blocks, offset)
	return marked
}

func (b *base) openOf(offset int64) (o ledger.Open, ok bool) {
	if b == nil || b.ledger == nil {
		return o, false
	}
	i := slices.IndexFunc(b.ledger.Open, func(o ledger.Open) bool { return o.Offset == offset })
	if i < 0 {
		return o, false
	}
	return b.ledger.Open[i], true
}

func readBase(part int32, offset int64, text string) *base {
	b := &base{offset: offset}
	if l, err := ledger.Decode(ledger.Place{Topic: topic, Partition: part, Offset: offset}, text); err == nil {
		b.ledger = l
	}
	return b
}

func (b *base) String() string {
	if b == nil {
		return "unknown"
	}
	if b.ledger == nil {
		return fmt.Sprintf("offset %d", b.offset)
	}
	var s strings.Builder
	fmt.Fprintf(&s, "offset %d clean=%t crashes=%d marks", b.offset, b.ledger.Clean, b.ledger.Crashes)
	for _, block := range b.ledger.Blocks {
		for _, run := range block.Runs {
			fmt.Fprintf(&s, " %d-%d", run.From, run.To-1)
		}
	}
	s.WriteString(" open")
	for _, o := range b.ledger.Open {
		fmt.Fprintf(&s, " %d#%d", o.Offset, o.Attempts)
		if !o.Due.IsZero() {
			fmt.Fprintf(&s, "(%v)", o.Due.Sub(origin))
		}
	}
	return s.String()
}

// baseOf returns what is stored for a partition, nil if the member is not its owner.
func (j *judge) baseOf(m *member, part int32) *base {
	info := j.w.cluster.GroupInfo(group)
	if info == nil {
		return nil
	}
	mine := false
	for _, g := range info.Members {
		if slices.Contains(g.Assignment[topic], part) {
			if g.ClientID != fmt.Sprint("m", m.id) {
				return nil
			}
			mine = true
		}
	}
	c, ok := info.Commits[topic][part]
	if !mine || !ok {
		return nil
	}
	return readBase(part, c.Offset, c.Metadata)
}

// origin is when every bubble's time begins.
var origin = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
