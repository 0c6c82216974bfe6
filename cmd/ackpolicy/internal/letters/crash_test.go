package letters

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var kills = flag.Int("kills", 3, "times that TestKill kills the command")

func numbers(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprint(i)
	}
	return all
}

// repeats is how often values come after their first time.
func repeats(values []string) int {
	times := map[string]int{}
	for _, v := range values {
		times[v]++
	}
	return len(values) - len(slices.Collect(maps.Keys(times)))
}

// Killed again and again, it loses no letter and sends none twice for those that read
// what is committed; others see again what one transaction held, at each kill.
func TestKill(t *testing.T) {
	t.Parallel()
	const n, batch = 600, 20
	b := newBed(t, 1)
	b.letters(0, n)
	for i := range *kills {
		c := b.start("send", "--batch", fmt.Sprint(batch), "--rate", "400")
		b.waitOrigin(0, b.originEnd(0)+[]int64{1, 70, 33, 5}[i%4])
		c.signal(os.Kill)
		c.want(-1)
	}
	b.want(exitDone, nil, "send", "--batch", fmt.Sprint(batch))
	b.wantValues(0, numbers(n)...)
	b.wantStored(0, n)
	again := repeats(values(b.read(b.origin, 0, sarama.ReadUncommitted)))
	if again > *kills*batch {
		t.Errorf("%d letters were visible twice after %d kills with a batch of %d", again, *kills, batch)
	}
	t.Logf("%d kills, %d letters visible twice to those that read what is not committed", *kills, again)
}

// Killed when all of a batch is written and nothing is committed, which needs kfake to hit:
// it is written again, and once for those that read what is committed.
func TestKilledBeforeTheCommit(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]kmsg.Key{
		"before the progress": kmsg.AddOffsetsToTxn, "amid the progress": kmsg.TxnOffsetCommit, "before the end": kmsg.EndTxn,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBedOn(t, brokertest.NewFake(t), 1)
			b.letters(0, 5)
			c := b.start("send")
			gone := make(chan struct{})
			b.broker.Kfake().ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
				defer close(gone)
				c.signal(os.Kill)
				return nil, errors.New("the network is gone, too"), true
			})
			c.want(-1)
			<-gone
			b.wantStored(0, -1)
			b.want(exitDone, []string{"is at work, or was killed a moment ago", "Sent 5 letters."}, "send")
			b.wantValues(0, numbers(5)...)
			if again := repeats(values(b.read(b.origin, 0, sarama.ReadUncommitted))); again != 5 {
				t.Errorf("%d letters were written twice, not 5", again)
			}
		})
	}
}

// Killed when the commit is carried out, before the response: nothing is written again.
func TestKilledAfterTheCommit(t *testing.T) {
	t.Parallel()
	b := newBedOn(t, brokertest.NewFake(t), 1)
	b.letters(0, 5)
	c := b.start("send")
	b.broker.Kfake().ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.broker.Kfake().DropControl()
		c.signal(os.Kill)
		return nil, nil, false
	})
	c.want(-1)
	testkit.Eventually(t, "the commit", func() bool {
		stored, err := brokertest.Committed(b.broker.Addrs(), b.group(), b.dlq, 0)
		return err == nil && stored == 5
	})
	b.want(exitDone, []string{"is open:"}, "send")
	if got := values(b.read(b.origin, 0, sarama.ReadUncommitted)); !slices.Equal(got, numbers(5)) {
		t.Errorf("the origin holds %v", got)
	}
}

// A commit that never gets a response may have been carried out: it says so, and continues from
// what Kafka has.
func TestCommitWithoutResponse(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for some 25 s")
	}
	b := newBedOn(t, brokertest.NewFake(t), 1)
	b.letters(0, 25)
	b.want(exitDone, nil, "send", "--limit", "5")
	var responds atomic.Bool
	b.broker.Kfake().ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.broker.Kfake().KeepControl()
		return nil, errors.New("gone"), !responds.Load()
	})
	b.want(exitFailed, []string{"not confirmed, and its letters are sent all or none", "Stopped: 0 of 20 letters sent"}, "send", "--batch", "10")
	responds.Store(true)
	b.want(exitDone, []string{"Sent 20 letters."}, "send")
	b.wantValues(0, numbers(25)...)
}

// While one is at work, another one says so and does nothing.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	const n = 300
	b := newBed(t, 1)
	b.letters(0, n)
	first := b.start("send", "--rate", "30")
	b.waitOrigin(0, 1)
	began := time.Now()
	b.want(exitFailed, []string{"Another redrive of " + b.dlq + " is at work", "process", "another redrive of this topic is at work"}, "skip", "--at", "0")
	if took := time.Since(began); took < sessionTimeout {
		t.Errorf("it waited %v: who died stays for %v", took, sessionTimeout)
	}
	b.want(exitDone, []string{"letters,"}, "list") // looking is free
	first.signal(os.Interrupt)
	first.want(exitInterrupted)
	b.want(exitDone, nil, "send")
	if got := values(b.read(b.origin, 0, sarama.ReadUncommitted)); !slices.Equal(got, numbers(n)) {
		t.Errorf("the origin holds %v", got)
	}
}

// Several that start at the same moment send each letter once, whoever reads.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	const n = 100
	b := newBed(t, 1)
	b.letters(0, n)
	results := make(chan result)
	for range 5 {
		go func() { results <- b.runIn(t.Context(), "send", "--batch", "7", "--rate", "200") }()
	}
	sent := 0
	for range 5 {
		r := <-results
		var some int
		if _, err := fmt.Sscanf(r.Out, "Sent %d letter", &some); err == nil {
			sent += some
		}
		if r.Code != exitDone && r.Code != exitFailed {
			t.Errorf("one ended with %v", r)
		}
	}
	if got := values(b.read(b.origin, 0, sarama.ReadUncommitted)); !slices.Equal(got, numbers(n)) || sent != n {
		t.Errorf("%d letters sent, the origin holds %v", sent, got)
	}
}

// One that was stopped until it was taken for dead wakes up while another is at work, or
// after that: it sends nothing more.
func TestStoppedAndWokenUp(t *testing.T) {
	t.Parallel()
	const n = 100
	b := newBed(t, 1)
	b.letters(0, n)
	zombie := b.start("send", "--rate", "20")
	b.waitOrigin(0, 3)
	zombie.signal(syscall.SIGSTOP)
	defer func() { _ = zombie.cmd.Process.Signal(syscall.SIGCONT) }()
	b.want(exitDone, []string{"was killed a moment ago", "Sent "}, "send")
	b.wantValues(0, numbers(n)...)
	zombie.signal(syscall.SIGCONT)
	zombie.want(exitFailed, "Stopped: ")
	b.wantValues(0, numbers(n)...)
	b.wantStored(0, n)
}

// Interrupted, it ends the transaction at hand, says how far it came, and continues from there.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	const n = 200
	b := newBed(t, 1)
	b.letters(0, n)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		before := len(b.values(0))
		c := b.start("send", "--rate", "50")
		b.waitOrigin(0, b.originEnd(0)+3)
		c.signal(s)
		r := c.wait()
		var sent, of int
		_, err := fmt.Sscanf(r.Out, "Interrupted: %d of %d letters sent. The same command continues from there.", &sent, &of)
		if after := len(b.values(0)); r.Code != exitInterrupted || err != nil || sent != after-before || of != n-before {
			t.Errorf("from %d to %d letters: %v", before, after, r)
		}
	}
	b.want(exitDone, nil, "send")
	if got := values(b.read(b.origin, 0, sarama.ReadUncommitted)); !slices.Equal(got, numbers(n)) {
		t.Errorf("the origin holds %v", got)
	}
}

// Whom the coordinator has thrown out sends nothing more, which needs kfake to hit.
func TestThrownOut(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]kmsg.Key{"at a heartbeat": kmsg.Heartbeat, "at a commit": kmsg.TxnOffsetCommit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBedOn(t, brokertest.NewFake(t), 1)
			b.letters(0, 200)
			b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{key}, Group: b.group(), Err: kerr.UnknownMemberID})
			b.want(exitFailed, []string{"this redrive was taken for dead", "Stopped: "}, "send", "--rate", "50")
			b.want(exitDone, nil, "send")
			b.wantValues(0, numbers(200)...)
		})
	}
}

// Errors that pass do not end it.
func TestPassingErrors(t *testing.T) {
	t.Parallel()
	b := newBedOn(t, brokertest.NewFake(t), 1)
	b.letters(0, 100)
	for _, fault := range []kfake.Fault{
		{Keys: []kmsg.Key{kmsg.JoinGroup}, Err: kerr.CoordinatorLoadInProgress},
		{Keys: []kmsg.Key{kmsg.SyncGroup}, Err: kerr.NotCoordinator},
		{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.CoordinatorNotAvailable},
		{Keys: []kmsg.Key{kmsg.OffsetFetch}, Err: kerr.UnstableOffsetCommit},
		{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.NotLeaderForPartition},
		{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition},
		{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicasAfterAppend},
		{Keys: []kmsg.Key{kmsg.AddPartitionsToTxn}, Err: kerr.ConcurrentTransactions},
		{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.CoordinatorLoadInProgress},
		{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.RequestTimedOut, TopLevel: true},
		{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.NotCoordinator, TopLevel: true},
	} {
		b.broker.Kfake().Fault(fault)
	}
	b.want(exitDone, []string{"Sent 100 letters."}, "send", "--rate", "50")
	if got := values(b.read(b.origin, 0, sarama.ReadUncommitted)); !slices.Equal(got, numbers(100)) {
		t.Errorf("the origin holds %v", got)
	}
}

// A commit carries the membership, so that Kafka refuses it once that is over.
func TestCommitOfAFormerMember(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letters(0, 1)
	client, err := (&kafka.Connection{Brokers: b.broker.Addrs()}).Client(b.group(), io.Discard)
	testkit.Check(t, err)
	defer client.Close()
	l, _, err := acquire(t.Context(), client, b.group(), b.dlq, []int32{0}, sessionTimeout, func(string) {})
	testkit.Check(t, err)
	s, err := newSender(client, l, b.dlq)
	testkit.Check(t, err)
	testkit.Check(t, s.send(nil, map[int32]*marks{0: {floor: 0}}))
	l.release()
	if err := s.send(nil, map[int32]*marks{0: {floor: 1}}); !errors.Is(err, errLost) {
		t.Errorf("after the end of the membership: %v", err)
	}
	s.close()
	b.wantStored(0, 0)
}

// Whom a newer producer has fenced stops soon, wherever it finds out, and has sent nothing.
// sarama tries again 60 times, though without pauses: beside other tests that takes its time, so it runs alone.
func TestFenced(t *testing.T) {
	for name, values := range map[string][]string{"with letters": {"x"}, "with marks only": nil} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, 1)
			var messages []*sarama.ProducerMessage
			for _, value := range values {
				messages = append(messages, &sarama.ProducerMessage{
					Topic: b.origin, Value: sarama.StringEncoder(value), Metadata: &letter{record: &sarama.ConsumerMessage{}},
				})
			}
			c := &kafka.Connection{Brokers: b.broker.Addrs()}
			client, err := c.Client(b.group(), io.Discard)
			testkit.Check(t, err)
			defer client.Close()
			l, _, err := acquire(t.Context(), client, b.group(), b.dlq, []int32{0}, sessionTimeout, func(string) {})
			testkit.Check(t, err)
			defer l.release()
			s, err := newSender(client, l, b.dlq)
			testkit.Check(t, err)
			defer s.close()
			newer, err := c.Client(b.group(), io.Discard)
			testkit.Check(t, err)
			defer newer.Close()
			other, err := newSender(newer, l, b.dlq)
			testkit.Check(t, err)
			defer other.close()

			began := time.Now()
			if err := s.send(messages, map[int32]*marks{0: {floor: 1}}); !errors.Is(err, errFenced) {
				t.Errorf("it says: %v", err)
			}
			if took := time.Since(began); took > sessionTimeout {
				t.Errorf("it noticed after %v", took)
			}
			b.wantStored(0, -1)
			if end := b.originEnd(0); end > 0 {
				t.Errorf("%d records were written", end)
			}
		})
	}
}
