package consumer

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/budget"
	"github.com/ackpolicy/watermill-ackpolicy/internal/letters"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// base is what the claims of a subscription have in common.
//
// Its mutexes are leaves, see docs/design.md: nothing is called with one held but a
// partition's Next.
type base struct {
	cfg        *Config            // not changed
	closing    context.Context    // ends with the first step of the subscription's end
	beginEnd   context.CancelFunc // ends closing
	closeBegan time.Time          // written before closing ends, read after it

	resources  *Resources       // what is shared with other subscriptions
	budget     *budget.Budget   // of resources
	limit      *partition.Limit // of resources; nil: none
	mail       *letters.Mail
	health     *health
	suspicion  suspicion
	quarantine quarantine
	pace       *pace
	batching   batching

	late    atomic.Bool  // the application settles late; see partition.Config
	stamps  sync.Map     // the message.timestamp.type of each topic for which a letter has asked
	clock   atomic.Int64 // Now, every pulse; written by keepTime
	slow    slowWatch    // keepTime's own: handlers
	pending slowWatch    // and records
	failing slowWatch
	member  atomic.Pointer[member] // of the last session, which writes it

	left wait.Changes // a claim has left

	claimsMu     sync.Mutex          // guards what follows
	claims       map[*Claim]struct{} // from run to the end of drain
	running      map[place]*Claim    // those of the claims whose messages are read
	over         bool                // no claim enters any more
	pausedByHand map[place]struct{}  // partitions and whole topics
	maxInFlight  int                 // 0: the configured one
	stalls       map[place]int64     // where a partition's watchdog had us reconnect
	leaderless   leaderless          // written by sarama's goroutines, through the client
}

func newBase(cfg *Config) *base {
	s := &base{
		cfg: cfg, resources: cfg.Resources, budget: cfg.Resources.budget, limit: cfg.Resources.limit, claims: map[*Claim]struct{}{},
		stalls: map[place]int64{}, running: map[place]*Claim{}, pausedByHand: map[place]struct{}{}, leaderless: leaderless{},
		mail: letters.New(), pace: newPace(), batching: newBatching(),
	}
	s.closing, s.beginEnd = context.WithCancel(context.Background())
	s.clock.Store(Now())
	s.suspicion.turn = make(chan struct{}, 1)
	s.health = newHealth(cfg.Logger, cfg.several(), s.closingNow, s.partitions)
	return s
}

// partitions returns those that are consumed, and of each whether it is paused.
func (s *base) partitions() map[place]bool {
	s.claimsMu.Lock()
	defer s.claimsMu.Unlock()
	paused := make(map[place]bool, len(s.claims))
	for c := range s.claims {
		paused[c.place] = c.gate.closed()
	}
	for at, asked := range s.leaderless {
		if time.Since(asked) < askedAgain {
			paused[at] = false
		}
	}
	return paused
}

// probe asks the brokers whether partitions can be fetched.
func (s *base) probe(c *clients) func(places []place) map[place]error {
	return func(places []place) map[place]error {
		from := map[place]int64{}
		s.claimsMu.Lock()
		for claim := range s.claims {
			if slices.Contains(places, claim.place) {
				from[claim.place] = claim.part.Next()
			}
		}
		s.claimsMu.Unlock()
		return c.probe(from)
	}
}

// logger returns the logger for lines about a topic.
func (s *base) logger(topic string) watermill.LoggerAdapter {
	if !s.cfg.several() {
		return s.cfg.Logger // its lines name it
	}
	return s.cfg.Logger.With(watermill.LogFields{"topic": topic})
}

func (s *base) closingNow() bool { return s.closing.Err() != nil }

// fetched is called by sarama once it has handed out what a fetch brought for a
// partition, before it sends the next one.
func (s *base) fetched(at place) {
	s.health.asked(at)
	s.claimsMu.Lock()
	c := s.running[at]
	s.claimsMu.Unlock()
	if c != nil && c.portion.Fetched() {
		c.look()
	}
}

// enter records that the goroutine of a claim reads its messages. It returns false if it is too late for that.
func (s *base) enter(c *Claim) bool {
	c.portion.Enter()
	s.claimsMu.Lock()
	defer s.claimsMu.Unlock()
	if s.over {
		return false
	}
	s.claims[c], s.running[c.place] = struct{}{}, c
	return true
}

// stopped records that the goroutine of the claim reads no more messages.
func (s *base) stopped(c *Claim) {
	s.claimsMu.Lock()
	defer s.claimsMu.Unlock()
	if s.running[c.place] == c {
		delete(s.running, c.place)
	}
}

// shut reports whether no claim is left. Then none enters any more.
func (s *base) shut() bool {
	s.claimsMu.Lock()
	defer s.claimsMu.Unlock()
	s.over = s.over || len(s.claims) == 0
	return s.over
}

func (s *base) exit(c *Claim) {
	c.portion.Exit()
	s.claimsMu.Lock()
	defer s.claimsMu.Unlock()
	delete(s.claims, c)
	s.left.Tell()
}
