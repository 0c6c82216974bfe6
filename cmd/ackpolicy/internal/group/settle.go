package group

import (
	"errors"
	"fmt"
	"slices"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// change is what a group is to store instead, so that a record is settled.
type change struct {
	to    kafka.Stored
	how   string
	notes []string
}

var (
	errSettled = errors.New("it is settled already: nothing to do")
	errNoRoom  = errors.New("the metadata of the commit has no room for one more mark. Skip the oldest open record first")
)

// settle returns what to store so that the record is settled, and nothing else than it.
func settle(m *sarama.ConsumerMessage, now kafka.Stored, topic kafka.Topic) (*change, error) {
	if m.Offset < now.Offset {
		return nil, errSettled
	}
	at := ledger.Place{Topic: m.Topic, Partition: m.Partition, Offset: now.Offset}
	c := &change{}
	l, err := read(at, now.Metadata, topic)
	switch {
	case errors.Is(err, errOtherTopic), errors.Is(err, ledger.ErrNewer):
		return nil, err
	case err != nil:
		if !errors.Is(err, ledger.ErrNone) {
			c.notes = append(c.notes, fmt.Sprintf("What is stored with the offset is replaced, since no member would use it: %v.", err))
		}
		// A ledger of a member that left cleanly means the same as none.
		l = &ledger.Ledger{TopicID: topic.ID, Cluster: topic.Cluster, Clean: true}
	}
	if _, marked := ledger.Marked(l.Blocks, m.Offset); marked {
		return nil, errSettled
	}
	if m.Offset == now.Offset {
		c.how = fmt.Sprintf("its committed offset moves from %d to %d", now.Offset, now.Offset+1)
		at.Offset++
	} else {
		c.how = fmt.Sprintf("it gets a mark behind the committed offset, %d, which stays", now.Offset)
		sum, certain := fingerprint(m, l)
		if !certain {
			c.notes = append(c.notes, "If the group's subscriber has a Tracer, the mark does not hold, since it changes headers: the record is delivered then.")
		}
		l.Blocks = mark(l.Blocks, m.Offset, sum)
	}
	l.Open = slices.DeleteFunc(l.Open, func(o ledger.Open) bool { return o.Offset == m.Offset })
	for i := range l.Blocks {
		l.Blocks[i].Rank = ledger.Promised // perhaps: somebody may rely on it
	}
	text, kept := ledger.Encode(at, l, ledger.DefaultRoom)
	if slices.Contains(kept.Blocks, false) {
		return nil, errNoRoom
	}
	if now.Metadata == "" && len(l.Blocks) == 0 {
		text = "" // as it was
	}
	c.to = kafka.Stored{Offset: at.Offset, Metadata: text}
	return c, nil
}

// mark adds a record to blocks of marks: as a separate block, so that it depends on no
// other record, unless it lies amid the marks of one.
func mark(blocks []ledger.Block, offset int64, sum uint32) []ledger.Block {
	run := ledger.Run{From: offset, To: offset + 1}
	i, _ := slices.BinarySearchFunc(blocks, offset, func(b ledger.Block, offset int64) int {
		if b.End() <= offset {
			return -1
		}
		return 1
	})
	if i == len(blocks) || offset < blocks[i].Runs[0].From {
		return slices.Insert(blocks, i, ledger.Block{Runs: []ledger.Run{run}, Sum: sum})
	}
	b := &blocks[i]
	at, _ := slices.BinarySearchFunc(b.Runs, offset, func(r ledger.Run, offset int64) int { return int(min(1, max(-1, r.From-offset))) })
	b.Runs = slices.Insert(b.Runs, at, run)
	b.Sum += sum
	return blocks
}

// fingerprint returns that of a record as a member makes it: with its headers, unless the member
// has a tracer. What the ledger knows of the record says which, else that is not certain.
func fingerprint(m *sarama.ConsumerMessage, l *ledger.Ledger) (sum uint32, certain bool) {
	var without, with ledger.Hash
	for _, h := range m.Headers {
		with.Bytes(h.Key)
		with.Bytes(h.Value)
	}
	sum = with.Fingerprint(m.Offset, m.Timestamp, m.Key, m.Value)
	plain := without.Fingerprint(m.Offset, m.Timestamp, m.Key, m.Value)
	for _, o := range l.Open {
		switch {
		case o.Offset != m.Offset:
		case o.Check == uint16(sum):
			return sum, true
		case o.Check == uint16(plain):
			return plain, true
		}
	}
	return sum, sum == plain
}
