package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// MemberEnv holds what a member's process is to be: a Membership, as JSON.
const MemberEnv = "ACKPOLICY_CHAOS_MEMBER"

// Membership is one member of a run's group, and one process.
type Membership struct {
	Spec
	Member int
	Proxy  string // the address
}

// The commands that a member takes, a line each. The end of its standard input is a CommandClose, too.
const (
	CommandClose  = "close"  // Router.Close
	CommandCancel = "cancel" // the end of the context of Router.Run
)

// running is what a member writes once its Router runs.
const running = "running"

// Main is the main function of a member's process. It returns the exit code.
func Main(membership string) int {
	var m Membership
	err := json.Unmarshal([]byte(membership), &m)
	if err == nil {
		err = m.run(os.Stdin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (m Membership) run(commands io.Reader) error {
	ledger, err := OpenLedger(m.Dir, m.Member) // not closed: a batch may be at its last acks when the process ends
	if err != nil {
		return err
	}
	sarama.Logger = log.New(os.Stderr, "[sarama] ", log.LstdFlags|log.Lmicroseconds)
	logger := watermill.NewStdLogger(false, false)
	sub, err := m.subscriber(ledger, logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	w := newWorker(m.Spec, ledger)
	if !m.Stock {
		router.AddMiddleware(m.middleware())
	}
	if m.Output == "" {
		router.AddConsumerHandler("handler", m.Topic, sub, w.handle)
	} else {
		pub, err := m.publisher(sub, logger)
		if err != nil {
			return err
		}
		router.AddHandler("handler", m.Topic, sub, m.outputTopic(), pub, w.copy(pub))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-router.Running() // Close before that waits for handlers that never start
		fmt.Println(running)
		command, _ := bufio.NewReader(commands).ReadString('\n')
		if command == CommandCancel+"\n" {
			cancel()
			return
		}
		_ = router.Close()
	}()
	return router.Run(ctx)
}

func (m Membership) subscriber(ledger *Ledger, logger watermill.LoggerAdapter) (message.Subscriber, error) {
	cfg := m.config()
	m.useProxy(cfg.Kafka.OverwriteSaramaConfig)
	if m.Stock {
		return kafka.NewSubscriber(cfg.Kafka, logger)
	}
	cfg.Hooks = hooks(ledger)
	return ackpolicy.NewSubscriber(cfg, logger)
}

func (m Membership) useProxy(cfg *sarama.Config) {
	cfg.Net.Proxy.Enable, cfg.Net.Proxy.Dialer = true, proxied(m.Proxy)
}

// hooks write what the library reports.
func hooks(l *Ledger) ackpolicy.Hooks {
	return ackpolicy.Hooks{
		Assigned: func(e ackpolicy.AssignedEvent) { l.Write(Assigned, ID{e.Partition, e.Start}, 0, "") },
		Settled: func(e ackpolicy.SettledEvent) {
			l.Write(Settled, ID{e.Partition, e.Offset}, e.Attempt, e.Status.String())
		},
		Committed: func(e ackpolicy.CommittedEvent) { l.Write(Committed, ID{e.Partition, e.Offset}, 0, "") },
		CommitFailed: func(e ackpolicy.CommitFailedEvent) {
			if e.Attempt == 0 {
				l.Write(Fenced, ID{e.Partition, e.Offset}, 0, oneLine(e.Err))
			}
		},
		Revoked: func(e ackpolicy.RevokedEvent) {
			how := howEnded{Clean: e.Err == nil, TimedOut: e.TimedOut, FirstLeft: e.FirstLeft, Letters: e.Letters, Unmarked: e.Unmarked}
			l.Write(Revoked, ID{e.Partition, e.Offset}, 0, how.String()+" "+oneLine(errors.Join(e.Cause, e.Err)))
		},
		DeadLettered: func(e ackpolicy.DeadLetteredEvent) {
			if e.Err == nil {
				l.Write(DeadLettered, ID{e.Partition, e.Offset}, 0, "")
			}
		},
		Unconfirmed: func(e ackpolicy.UnconfirmedEvent) {
			l.Write(Unconfirmed, ID{e.Partition, e.Offset}, 0, oneLine(e.Err))
		},
	}
}

// worker is the application.
type worker struct {
	spec    Spec
	ledger  *Ledger
	batches *testkit.Batcher

	mu       sync.Mutex
	attempts map[ID]int               // stock: it does not count them
	watched  map[<-chan struct{}]bool // Draining, one per assignment
}

func newWorker(spec Spec, ledger *Ledger) *worker {
	w := &worker{spec: spec, ledger: ledger}
	w.batches = &testkit.Batcher{Size: 10, Interval: 200 * time.Millisecond, Flush: w.flush}
	return w
}

// flush acks by the last one in every other partition, where records end in their order.
func (w *worker) flush(ds []*ackpolicy.Delivery) {
	last := ds[len(ds)-1]
	if w.spec.Ordering == ackpolicy.OrderByPartition && last.Partition()%2 == 0 {
		w.call(last, ackCumulative, last.AckCumulative)
		return
	}
	for _, d := range ds {
		w.call(d, ack, d.Ack)
	}
}

func (w *worker) attempt(id ID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.attempts == nil {
		w.attempts = map[ID]int{}
	}
	w.attempts[id]++
	return w.attempts[id]
}

// watch has a line written once the drain of the delivery's assignment begins.
func (w *worker) watch(d *ackpolicy.Delivery) {
	draining, id, attempt := d.Draining(), ID{d.Partition(), d.Offset()}, d.Attempt()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watched[draining] {
		return
	}
	if w.watched == nil {
		w.watched = map[<-chan struct{}]bool{}
	}
	w.watched[draining] = true
	go func() {
		<-draining
		w.ledger.Write(Draining, id, attempt, "")
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watched, draining)
	}()
}

func (w *worker) handle(msg *message.Message) error {
	var id ID
	var attempt int
	id.Partition, _ = kafka.MessagePartitionFromCtx(msg.Context())
	id.Offset, _ = kafka.MessagePartitionOffsetFromCtx(msg.Context())
	d, _ := ackpolicy.FromMessage(msg)
	if w.spec.Stock {
		attempt = w.attempt(id)
	} else {
		attempt = d.Attempt()
	}
	w.ledger.Write(Delivered, id, attempt, "")
	if !w.spec.Stock {
		w.watch(d)
	}
	b := w.spec.behaviour(id)
	e := b.ends(attempt)
	<-time.After(b.work)
	if w.spec.Policy == ackpolicy.Manual && !w.spec.Stock {
		w.settle(msg.Context(), d, b, e)
	}
	w.ledger.Write(Done, id, attempt, w.spec.verdict(e, attempt))
	return w.spec.end(e, b.delay)
}

// settle does by hand what no signal does.
func (w *worker) settle(ctx context.Context, d *ackpolicy.Delivery, b behaviour, e ending) {
	switch e {
	case fails, panics:
		does := nack
		if d.Attempt() >= maxDeliveries {
			does = reject
		}
		w.call(d, does, func() bool { return d.NackAfter(b.delay) })
	case succeeds:
		switch b.verb {
		case acks:
			w.call(d, ack, d.Ack)
		case acksSync:
			w.call(d, ackSync, func() bool { return d.AckSync(ctx) == nil })
		case acksLate:
			w.batches.Add(d)
		}
	}
}

// Verbs of a Call, beside ack, nack and reject.
const (
	ackSync       = "acksync"
	ackCumulative = "ackcumulative"
)

func (w *worker) call(d *ackpolicy.Delivery, verb string, do func() bool) {
	id := ID{d.Partition(), d.Offset()}
	w.ledger.Write(Call, id, d.Attempt(), verb)
	w.ledger.Write(Returned, id, d.Attempt(), fmt.Sprintf("%s %t", verb, do()))
}
