package consumer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/connections"
	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/strategy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/transact"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Subscription reads topics until the context given to Start ends, or its Subscriber closes.
type Subscription struct {
	*base
	values      context.Context    // the context of Subscribe, for its values only
	dialer      *dial.Dialer       // of its own connections
	side        *connections.Lease // of those that it shares
	cooperative bool
	// transactions writes them; nil without. The committer uses it and, between two sessions,
	// the subscription.
	transactions *transact.Sender
	mixed        mixed
	joining      outage.Outage // a session does not begin

	done chan struct{}
	end  func() // closes done

	topics   *topics
	covering map[string]int // the number of partitions for whose assignment the member joined again; used by the watch only

	mu        sync.Mutex      // guards positions
	positions map[place]int64 // without a group: where each partition continues
}

// Start connects and begins to consume, or returns an error. The subscription ends when ctx,
// whose values messages inherit, or closing ends.
func Start(ctx, closing context.Context, cfg Config) (*Subscription, error) {
	s := &Subscription{
		base:      newBase(&cfg),
		values:    ctx,
		done:      make(chan struct{}),
		topics:    newTopics(&cfg),
		covering:  map[string]int{},
		positions: map[place]int64{},
		joining:   outage.Outage{Quiet: waitTold},
	}
	s.end = sync.OnceFunc(func() { close(s.done) })
	// What a broker may send at once, compressed.
	fetch := &cfg.Sarama.Consumer.Fetch
	fetch.MaxBytes = min(fetch.MaxBytes, max(fetch.Default, int32(min(cfg.MaxBufferedBytes/4, math.MaxInt32))))
	s.cooperative = strategy.Cooperative(cfg.Sarama)
	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(closing, func() { cancel(ErrClosing) })()
	var err error
	if s.side, err = cfg.Resources.join(starting, &cfg); err != nil {
		return nil, s.cannotConnect(err)
	}
	s.dialer = dial.New(cfg.Sarama)
	s.transactions = newSender(&cfg)
	if cfg.Transactions != nil {
		s.mixed.logger = cfg.Logger
		strategy.Mark(cfg.Sarama, s.mixed.group)
	}
	s.dialer.Worked() // the brokers have accepted the same settings
	s.health.explain = func(err error) error { return s.dialer.Explain(s.cfg.Sarama, err) }
	s.watchRetries()
	c, all, err := s.open(starting, true)
	if err != nil {
		s.cut()
		return nil, errors.Join(err, s.side.Release())
	}
	go s.run(ctx, closing, c, all)
	return s, nil
}

// cut closes the subscription's own connections for good, and lets it use the shared ones no more.
func (s *Subscription) cut() {
	s.side.Cut()
	s.dialer.Cut()
	if s.transactions != nil {
		s.transactions.Cut()
	}
}

func (s *Subscription) cannotConnect(err error) error {
	return fmt.Errorf("cannot connect to Kafka brokers %v: %w", s.cfg.Brokers, err)
}

// Done is closed once nothing of the subscription runs any more or, if application code does
// not let it end in time, once it hands nothing out any more.
func (s *Subscription) Done() <-chan struct{} { return s.done }

// open makes the clients, for the first time or again. The end of ctx interrupts it and cuts all connections for good.
func (s *Subscription) open(ctx context.Context, first bool) (*clients, *solo, error) {
	connected := context.AfterFunc(ctx, s.cut)
	defer connected()
	defer s.side.AbortLate(ctx.Done())()
	c, err := open(s.base, s.side)
	if err != nil {
		return nil, nil, s.cannotConnect(s.dialer.Explain(s.cfg.Sarama, err))
	}
	if err := s.find(c.side); err != nil {
		return nil, nil, s.cannotConnect(errors.Join(s.dialer.Explain(s.cfg.Sarama, err), c.close()))
	}
	if s.cfg.Group != "" {
		return c, nil, nil
	}
	all, err := s.openAll(ctx, c, first)
	if err != nil {
		_ = c.close()
		return nil, nil, s.dialer.Explain(s.cfg.Sarama, err)
	}
	return c, all, nil
}

func (s *Subscription) run(outer, closing context.Context, c *clients, all *solo) {
	defer s.end()
	s.resources.enter(s.base)
	defer s.resources.exit(s.base)
	go s.health.run()
	defer s.health.close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	finished := make(chan struct{})
	defer s.keepTime()()
	var finishing atomic.Bool
	finish := func() { // no sync.Once: whoever comes second would wait for its mutex
		if finishing.CompareAndSwap(false, true) {
			s.finish(ctx, cancel, finished)
		}
	}
	defer after(outer, finish)()
	defer after(closing, finish)()
	defer finish() // also if it ends for good: another process has our static id
	defer close(finished)
	defer s.release()
	defer s.closeTransactions()
	defer s.startBatchers()()
	for sleep := s.cfg.ReconnectSleep; ; {
		if c != nil {
			began := time.Now()
			if !s.consumeWith(ctx, c, all) {
				return
			}
			if time.Since(began) > time.Minute {
				sleep = s.cfg.ReconnectSleep
			}
		}
		if !wait.For(wait.Jitter(sleep), ctx.Done()) {
			return
		}
		sleep = min(2*sleep, max(s.cfg.ReconnectSleep, 30*time.Second))
		s.cfg.Logger.Debug("Reconnecting consumer", nil)
		var err error
		if c, all, err = s.open(ctx, false); err != nil {
			c = nil
			s.health.failed(connecting, everywhere, failure{text: "Cannot reconnect to Kafka", err: err})
		}
	}
}

// finish ends the subscription in time: first the claims, then the membership, then the
// connections.
func (s *Subscription) finish(ctx context.Context, cancel context.CancelFunc, finished <-chan struct{}) {
	s.closeBegan = time.Now()
	s.beginEnd()
	bound := s.closeBegan.Add(s.cfg.DrainTimeout + CloseGrace)
	// The claims drain while the membership continues: a member that no longer follows a
	// rebalance cannot commit any more.
	// The generation of an eager member is valid throughout its drain.
	if s.cooperative && s.cfg.Group != "" {
		awaitClaims(s.base, time.After(s.cfg.DrainTimeout+drainGrace))
	}
	cancel()
	// If the broker is gone, requests under way only end at their timeouts. What follows takes
	// up to a second more.
	late := wait.For(time.Until(bound.Add(-time.Second)), finished)
	if late {
		s.cfg.Logger.Error("Kafka did not respond in time while closing: connections cut",
			errors.New("close timed out"), watermill.LogFields{"timeout": (s.cfg.DrainTimeout + CloseGrace).String()})
		s.side.Abort()
		defer s.side.AbortLate(ctx.Done())()
	}
	s.cut()
	if wait.For(time.Until(bound.Add(-100*time.Millisecond)), finished) {
		s.abandon()
	}
}

// release gives the shared connections back.
func (s *Subscription) release() {
	if err := s.side.Release(); err != nil {
		s.cfg.Logger.Debug("The shared connections were closed with an error", watermill.LogFields{"err": err.Error()})
	}
}

// consumeWith consumes until the connections fail or ctx ends. It returns false if the caller
// must not connect again.
func (s *Subscription) consumeWith(ctx context.Context, c *clients, all *solo) (again bool) {
	switch err := errors.Join(s.consume(ctx, c, all), c.close()); {
	case err == nil:
	case s.closingNow():
		s.cfg.Logger.Info("Kafka consumer closed with an error", watermill.LogFields{"err": err.Error()})
	case errors.Is(err, sarama.ErrFencedInstancedId):
		// Joining again would fence the other process, which would do the same.
		s.cfg.Logger.Error("Another process has taken over the static member id: this subscription ends. Give each process its own id", err,
			watermill.LogFields{"group_instance_id": s.cfg.Sarama.Consumer.Group.InstanceId})
		return false
	default:
		s.health.failed(connecting, everywhere, failure{text: "Kafka consumer stopped, reconnecting", err: err})
	}
	return true
}

// abandon ends the subscription for the application although something of it still runs:
// application code that does not return.
func (s *Subscription) abandon() {
	s.health.tellNotes()
	const text = "Subscription closed, but something still runs: it is left behind, and ends when its call returns"
	if !s.shut() {
		s.cfg.Logger.Error(text+". Its channel stays open until then", errors.New("code of the application does not return to a partition's claim"), nil)
		return
	}
	s.cfg.Logger.Error(text, errors.New("a call does not return, probably of the application's code, such as a Tracer or a balance strategy"), nil)
	s.end()
}

// awaitClaims returns once no claim is left or done is closed.
func awaitClaims[T any](s *base, done <-chan T) {
	for {
		left := s.left.Next()
		if len(s.assigned()) == 0 {
			return
		}
		select {
		case <-left:
		case <-done:
			return
		}
	}
}

func (s *Subscription) consume(ctx context.Context, c *clients, all *solo) error {
	s.health.connected(s.probe(c))
	defer s.health.session(false)
	if s.cfg.Group == "" {
		return all.run(ctx)
	}
	return s.consumeGroup(ctx, c)
}

// revokeBudget returns how long handlers may take on a revocation: the coordinator evicts a
// member that takes longer than the rebalance timeout, which began up to a heartbeat ago.
func (s *Subscription) revokeBudget() time.Duration {
	consumer := &s.cfg.Sarama.Consumer
	budget := consumer.Group.Rebalance.Timeout - consumer.Group.Heartbeat.Interval - 2*consumer.MaxWaitTime - time.Second
	return min(max(budget, consumer.Group.Rebalance.Timeout/4), s.cfg.DrainTimeout)
}

// watchRetries reports each fetch that sarama retries to health.
func (s *Subscription) watchRetries() {
	retry := &s.cfg.Sarama.Consumer.Retry
	user, pause := retry.BackoffFunc, retry.Backoff
	retry.BackoffFunc = func(retries int) time.Duration {
		pause := pause
		if user != nil {
			pause = user(retries)
		}
		s.health.retry(retries, pause)
		return pause
	}
}
