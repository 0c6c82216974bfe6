package group

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// hold has the group handle ten records, of which some are held, and leave.
func (b *bed) hold(held ...string) {
	b.t.Helper()
	b.put(0, 10)
	s := b.service(held...)
	testkit.Eventually(b.t, "ten deliveries", func() bool { return s.count() == 10 })
	s.stop()
}

// comesAgain starts the group again, and returns what is delivered beside a new record.
func (b *bed) comesAgain(offset int) []string {
	b.t.Helper()
	b.put(offset, offset+1)
	s := b.service()
	state := State{}
	testkit.Eventually(b.t, "all that is due to be settled", func() bool {
		state = b.state()
		return s.count() > 0 && state.Partitions[0].End == int64(offset+1) && state.Partitions[0].WorkLag == int64(state.Partitions[0].Open)
	})
	s.stop()
	return s.values()
}

// The oldest record is skipped: the offset moves past it, and the marks behind it hold.
func TestSkipTheOldest(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.hold("2", "5")
	b.skip(cli.Done, []string{"record     " + b.topic + " 0:2\n", "key        2\n", "value      1 byte, not shown", "header     h: v",
		"its committed offset moves from 2 to 3", "Skipped."}, 2, "--yes")
	p := b.state().Partitions[0]
	if *p.Committed != 3 || p.WorkLag != 1 || p.Holds.Offset != 5 || p.Holds.Attempts != 1 || p.Holds.Due == nil || !p.LeftCleanly {
		t.Errorf("it is left with %+v, %+v", p, p.Holds)
	}
	b.skip(cli.Done, []string{"it is settled already"}, 2, "--yes")
	if got := b.comesAgain(10); !slices.Equal(got, []string{"10"}) { // 5 is due in an hour
		t.Errorf("delivered again: %v", got)
	}
}

// One behind the oldest gets a mark, amid the marks of others, that the next owner takes for true.
func TestSkipBehindTheOldest(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.hold("2", "5")
	r := b.skip(cli.Done, []string{"it gets a mark behind the committed offset, 2", "Skipped."}, 5, "--yes")
	if strings.Contains(r.Out, "Tracer") {
		t.Errorf("it does not know the record again: %v", r)
	}
	p := b.state().Partitions[0]
	if *p.Committed != 2 || p.WorkLag != 1 || p.Open != 1 || p.Holds.Offset != 2 {
		t.Errorf("it is left with %+v", p)
	}
	b.skip(cli.Done, []string{"it is settled already"}, 5, "--yes")
	b.skip(cli.Done, []string{"moves from 2 to 3"}, 2, "--yes")
	if got := b.comesAgain(10); !slices.Equal(got, []string{"10"}) {
		t.Errorf("delivered again: %v", got)
	}
	if p := b.state().Partitions[0]; *p.Committed != 11 || p.WorkLag != 0 {
		t.Errorf("at the end: %+v", p)
	}
}

// One that was never delivered, of a group that has stored but an offset.
func TestSkipWhatWasNeverDelivered(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.put(0, 6)
	testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), b.group, b.topic, 0, 1))
	b.skip(cli.Done, []string{"it gets a mark", "has a Tracer", "Skipped."}, 3, "--yes")
	b.skip(cli.Done, []string{"moves from 1 to 2", "Skipped."}, 1, "--yes")
	if got := b.comesAgain(6); !slices.Equal(got, []string{"2", "4", "5", "6"}) {
		t.Errorf("delivered: %v", got)
	}
}

// A group that is up is refused, by the command and by Kafka.
func TestSkipOfALiveGroup(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.put(0, 10)
	s := b.service("2")
	testkit.Eventually(t, "ten deliveries", func() bool { return s.count() == 10 })
	b.skip(cli.Failed, []string{"has 1 member: stop them", "nothing was skipped"}, 2, "--yes")
	client, err := (&kafka.Connection{Brokers: testkit.Shared.Addrs()}).Client("", &bytes.Buffer{})
	testkit.Check(t, err)
	defer client.Close()
	if err := kafka.Store(t.Context(), client, b.group, b.topic, 0, kafka.Stored{Offset: 3}); !errors.Is(err, sarama.ErrUnknownMemberId) {
		t.Errorf("Kafka says %v", err)
	}
}

func TestSkipAsks(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.put(0, 3)
	b.skip(cli.Failed, []string{"has no offset stored"}, 1, "--yes")
	testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), b.group, b.topic, 0, 1))
	b.skip(cli.Failed, []string{"moves from 1 to 2", "say --yes: nothing was skipped"}, 1)
	b.skip(cli.Done, []string{"moves from 1 to 2", "Dry run: nothing was done."}, 1, "--dry-run")
	b.skip(cli.Failed, []string{"there is no record " + b.topic + " 0:3: the partition has the offsets from 0 to 3"}, 3, "--yes")
	b.skip(cli.Usage, []string{"want --topic, --partition and --offset"}, -1, "--yes")
	for _, test := range []struct {
		reply  bool
		change bool // meanwhile
		says   string
		stored int64
	}{{false, false, "nothing was skipped", 1}, {true, true, "the group has stored something else meanwhile", 2}, {true, false, "Skipped.", 3}} {
		var out bytes.Buffer
		env := b.env(&out, &out)
		env.Ask = func(_ context.Context, question string) (bool, error) {
			if test.change {
				testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), b.group, b.topic, 0, 2))
			}
			return test.reply && question == "Skip it? [y/N] ", nil
		}
		env.Run(t.Context(), []string{"skip", "--group", b.group, "--topic", b.topic, "--partition", "0", "--offset", "2"}, Skip)
		if !strings.Contains(out.String(), test.says) {
			t.Errorf("%q is missing in %s", test.says, out.String())
		}
		if stored, err := brokertest.Committed(testkit.Shared.Addrs(), b.group, b.topic, 0); err != nil || stored != test.stored {
			t.Errorf("stored is %d, %v, want %d", stored, err, test.stored)
		}
	}
}

// Against a model: whatever was settled before stays so, the record is, too, and nothing else.
func TestSettleModel(t *testing.T) {
	t.Parallel()
	const end = 60
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		records := make([]*sarama.ConsumerMessage, end)
		for i := range records {
			records[i] = &sarama.ConsumerMessage{
				Topic: "orders", Partition: 3, Offset: int64(i), Timestamp: time.UnixMilli(rng.Int64N(1e12)), Value: []byte{byte(i)},
				Headers: []*sarama.RecordHeader{{Key: []byte("h")}},
			}
		}
		topic := kafka.Topic{ID: [16]byte{1}, Cluster: 7}
		committed := rng.Int64N(20)
		l := &ledger.Ledger{TopicID: topic.ID, Cluster: topic.Cluster}
		settled := make([]bool, end)
		var b ledger.Block
		for o := range int64(end) {
			settled[o] = o < committed || rng.IntN(3) > 0
			if o < committed || !settled[o] {
				if o >= committed {
					sum, _ := fingerprint(records[o], &ledger.Ledger{})
					l.Open = append(l.Open, ledger.Open{Offset: o, Attempts: 1, Check: uint16(sum)})
				}
				continue
			}
			sum, _ := fingerprint(records[o], &ledger.Ledger{})
			b.Runs = append(b.Runs, ledger.Run{From: o, To: o + 1})
			b.Sum += sum
			if rng.IntN(4) == 0 {
				l.Blocks, b = append(l.Blocks, b), ledger.Block{}
			}
		}
		if len(b.Runs) > 0 {
			l.Blocks = append(l.Blocks, b)
		}
		at := ledger.Place{Topic: "orders", Partition: 3, Offset: committed}
		text, _ := ledger.Encode(at, l, ledger.DefaultRoom)
		now := kafka.Stored{Offset: committed, Metadata: text}
		for range 20 {
			o := rng.Int64N(end)
			c, err := settle(records[o], now, topic)
			if settled[o] != errors.Is(err, errSettled) || err != nil && !settled[o] {
				t.Fatalf("seed %d, %d: settled %v, %v", seed, o, settled[o], err)
			}
			if err != nil {
				continue
			}
			settled[o], now = true, c.to
			at.Offset = now.Offset
			l, err := read(at, now.Metadata, topic)
			testkit.Check(t, err)
			wantSettled(t, seed, l, now.Offset, settled, records)
		}
	}
}

func wantSettled(t *testing.T, seed uint64, l *ledger.Ledger, committed int64, settled []bool, records []*sarama.ConsumerMessage) {
	t.Helper()
	for o := range int64(len(settled)) {
		if _, marked := ledger.Marked(l.Blocks, o); settled[o] != (o < committed || marked) {
			t.Fatalf("seed %d: %d is settled %v, and stored as marked %v at %d", seed, o, settled[o], marked, committed)
		}
		if open := slices.ContainsFunc(l.Open, func(e ledger.Open) bool { return e.Offset == o }); open == settled[o] {
			t.Fatalf("seed %d: %d is settled %v, and open %v", seed, o, settled[o], open)
		}
	}
	for _, b := range l.Blocks {
		sum := uint32(0)
		for _, r := range b.Runs {
			for o := r.From; o < r.To; o++ {
				s, _ := fingerprint(records[o], &ledger.Ledger{})
				sum += s
			}
		}
		if sum != b.Sum {
			t.Fatalf("seed %d: the sum of %v is %x, not %x", seed, b.Runs, b.Sum, sum)
		}
	}
}

// A member with a tracer leaves headers out of its fingerprints, which the ledger shows.
func TestSettleTraced(t *testing.T) {
	t.Parallel()
	m := &sarama.ConsumerMessage{Topic: "orders", Offset: 5, Headers: []*sarama.RecordHeader{{Key: []byte("h")}}}
	plain := ledger.Hash{}.Fingerprint(m.Offset, m.Timestamp, m.Key, m.Value)
	if sum, certain := fingerprint(m, &ledger.Ledger{Open: []ledger.Open{{Offset: 5, Check: uint16(plain)}}}); sum != plain || !certain {
		t.Errorf("%x, %v: want %x", sum, certain, plain)
	}
	if _, certain := fingerprint(m, &ledger.Ledger{}); certain {
		t.Error("it cannot know")
	}
}

// What cannot be stored is refused: nothing else is to be forgotten for it.
func TestSettleRefuses(t *testing.T) {
	t.Parallel()
	m := &sarama.ConsumerMessage{Topic: "orders", Offset: 1 << 20}
	at := ledger.Place{Topic: "orders"}
	rng := rand.New(rand.NewPCG(1, 1))
	full := &ledger.Ledger{}
	b := ledger.Block{}
	for o := int64(1); ; o++ { // as much as there is room for
		if rng.IntN(2) == 0 {
			continue
		}
		b.Runs = append(b.Runs, ledger.Run{From: o, To: o + 1})
		full.Blocks = []ledger.Block{b}
		if len(b.Runs)%100 > 0 {
			continue
		}
		if _, kept := ledger.Encode(at, full, ledger.DefaultRoom); !kept.Whole(full) {
			b.Runs = b.Runs[:len(b.Runs)-100]
			full.Blocks = []ledger.Block{b}
			break
		}
	}
	text, _ := ledger.Encode(at, full, ledger.DefaultRoom-8)
	elsewhere, _ := ledger.Encode(at, &ledger.Ledger{TopicID: [16]byte{2}}, ledger.DefaultRoom)
	for _, test := range []struct {
		text string
		want error
	}{{text, errNoRoom}, {elsewhere, errOtherTopic}, {"ackpolicy99:x", ledger.ErrNewer}} {
		if c, err := settle(m, kafka.Stored{Metadata: test.text}, kafka.Topic{ID: [16]byte{1}}); !errors.Is(err, test.want) {
			t.Errorf("%.20q: %+v, %v", test.text, c, err)
		}
	}
	for _, text := range []string{"x", "somebody else's"} {
		c, err := settle(m, kafka.Stored{Metadata: text}, kafka.Topic{ID: [16]byte{1}})
		if err != nil || len(c.notes) == 0 || !strings.Contains(c.notes[0], "is replaced") {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
}
