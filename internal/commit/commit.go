// Package commit stores the watermarks of a consumer group's partitions in Kafka.
//
// It sends OffsetCommit itself, over a connection of its own to the group's
// coordinator: sarama's session hides most failures of a commit, and on the
// connection that also fetches a commit waits behind the fetch for up to a second.
// One request at a time gathers everything that is due, as a database's group
// commit does, and one answer serves everybody who waits for it.
package commit

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Session is the membership a commit is sent under. Both answers change during
// a session where rebalances are cooperative.
type Session interface {
	MemberID() string
	GenerationID() int32
}

// Config of a Committer.
type Config struct {
	Client sarama.Client // not the one that fetches
	Group  string
	// InstanceID is the static member's id; nil for a dynamic member.
	InstanceID *string
	// Interval between commits that nobody waits for.
	Interval time.Duration
	// Cooperative: the session outlives its generation, so an illegal one is
	// not the end.
	Cooperative bool

	// Committed, Failed and Fenced tell of each partition in a commit's answer.
	// They are called without any lock held.
	Committed func(topic string, partition int32, offset int64)
	Failed    func(topic string, partition int32, offset int64, err error, attempt int)
	Fenced    func(topic string, partition int32, offset int64, err error)
}

// linger is how long a commit that somebody waits for gathers others that are
// about to wait: the broker answers no faster for many small commits.
const linger = time.Millisecond

// Committer commits for the partitions of one session. Close ends it.
type Committer struct {
	cfg     Config
	session Session

	mu      sync.Mutex
	sources map[*Source]struct{}

	urge chan struct{}
	stop chan struct{}
	done chan struct{}
}

// New starts a committer.
func New(cfg Config, session Session) *Committer {
	c := &Committer{
		cfg: cfg, session: session,
		sources: map[*Source]struct{}{},
		urge:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	go c.run()
	return c
}

// Close ends the committer and waits for it. What is to be stored must have been
// flushed before. A request under way is waited for: close the client to cut it short.
func (c *Committer) Close() {
	close(c.stop)
	<-c.done
}

// Urge commits now rather than at the next interval.
func (c *Committer) Urge() {
	select {
	case c.urge <- struct{}{}:
	default:
	}
}

func (c *Committer) run() {
	defer close(c.done)
	ticker := time.NewTicker(c.cfg.Interval)
	defer ticker.Stop()
	rebalancing := false
	for attempt := 0; ; {
		if attempt > 0 {
			if !wait.For(pause(attempt, rebalancing), c.stop) {
				return
			}
		} else {
			select {
			case <-c.stop:
				return
			case <-ticker.C:
			case <-c.urge:
				if c.worthLingering() && !wait.For(linger, c.stop) {
					return
				}
			}
		}
		// A call for a commit that comes from here on is served by the next one.
		select {
		case <-c.urge:
		default:
		}
		var again bool
		if again, rebalancing = c.commit(); again {
			attempt++
		} else {
			attempt = 0
		}
	}
}

// worthLingering tells whether more handlers may come to wait for this commit.
func (c *Committer) worthLingering() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting, running := 0, 0
	for s := range c.sources {
		waiting += len(s.waiters)
		running += s.cfg.Running()
		if s.flushing {
			return false
		}
	}
	return waiting < running
}

// backoff between attempts: 20 ms, doubling, 1 s at most.
func backoff(attempt int) time.Duration { return pause(attempt, false) }

// pause is backoff, shorter where the end of a rebalance is what a commit waits for:
// the time until the next one may be short.
func pause(attempt int, rebalancing bool) time.Duration {
	most := time.Second
	if rebalancing {
		most = 100 * time.Millisecond
	}
	return wait.Backoff(attempt, 20*time.Millisecond, most)
}

// due is what one request tries to store.
type due struct {
	source *Source
	mark   partition.Mark
}

func (c *Committer) gather() []due {
	c.mu.Lock()
	defer c.mu.Unlock()
	var dues []due
	for s := range c.sources {
		if mark, ok := s.dirty(); ok {
			s.flying = mark.Seq
			dues = append(dues, due{s, mark})
		}
	}
	return dues
}

// commit sends what is due. It answers whether some of it must be sent again soon,
// and whether a rebalance is why.
func (c *Committer) commit() (again, rebalancing bool) {
	// The membership first: a watermark that is older than a rebalance must not go
	// out under the generation that came with it, to a partition others own by now.
	member, generation := c.session.MemberID(), c.session.GenerationID()
	dues := c.gather()
	if len(dues) == 0 {
		return false, false
	}
	errs, sent, err := c.send(dues, member, generation)
	refresh := false
	for _, d := range dues {
		perr := err
		if err == nil {
			perr = answerFor(errs, d.source.cfg.Topic, d.source.cfg.Partition)
		}
		d.source.landed(d.mark, perr, sent && err != nil)
		switch {
		case perr == nil:
			c.stored(d)
		case c.fenced(perr, member, generation):
			d.source.Close(perr)
			d.source.cfg.Fenced(perr)
			c.cfg.Fenced(d.source.cfg.Topic, d.source.cfg.Partition, d.mark.Offset, perr)
		default:
			again = true
			rebalancing = rebalancing || errors.Is(perr, sarama.ErrIllegalGeneration) || errors.Is(perr, sarama.ErrRebalanceInProgress)
			refresh = refresh || err != nil || errors.Is(perr, sarama.ErrNotCoordinatorForConsumer) ||
				errors.Is(perr, sarama.ErrConsumerCoordinatorNotAvailable)
			d.source.attempts++
			c.cfg.Failed(d.source.cfg.Topic, d.source.cfg.Partition, d.mark.Offset, perr, d.source.attempts)
		}
	}
	if refresh {
		// Its own failure shows at the next attempt.
		_ = c.cfg.Client.RefreshCoordinator(c.cfg.Group)
	}
	return again, rebalancing
}

func (c *Committer) stored(d due) {
	d.source.attempts = 0
	if d.source.confirm(d.mark) {
		c.Urge()
	}
	d.source.cfg.Confirmed(d.mark)
	c.cfg.Committed(d.source.cfg.Topic, d.source.cfg.Partition, d.mark.Offset)
}

// send answers what the broker said of each partition, or why it said nothing,
// and whether the request was on its way then.
func (c *Committer) send(dues []due, member string, generation int32) (errs map[string]map[int32]sarama.KError, sent bool, err error) {
	request := sarama.NewOffsetCommitRequest(c.cfg.Client.Config(), c.cfg.Group)
	request.ConsumerID = member
	request.ConsumerGroupGeneration = generation
	if request.Version >= 7 {
		request.GroupInstanceId = c.cfg.InstanceID
	}
	for _, d := range dues {
		// No leader epoch: sarama does not tell it with a record.
		request.AddBlockWithLeaderEpoch(d.source.cfg.Topic, d.source.cfg.Partition, d.mark.Offset, -1, 0, "")
	}
	coordinator, err := c.cfg.Client.Coordinator(c.cfg.Group)
	if err != nil {
		return nil, false, err
	}
	response, err := coordinator.CommitOffset(request)
	if err != nil {
		// The connection is in an unknown state; the client opens it again.
		_ = coordinator.Close()
		return nil, true, err
	}
	return response.Errors, true, nil
}

var errNoAnswer = errors.New("the broker's answer does not name the partition")

func answerFor(errs map[string]map[int32]sarama.KError, topic string, partition int32) error {
	kerr, ok := errs[topic][partition]
	if !ok {
		return errNoAnswer
	}
	if kerr == sarama.ErrNoError {
		return nil
	}
	return kerr
}

// fenced tells whether the group has gone on without this member. An illegal
// generation is not that if the session has a newer one by now, or is about to
// get it (cooperative rebalances change it in mid-session).
func (c *Committer) fenced(err error, member string, generation int32) bool {
	switch {
	case errors.Is(err, sarama.ErrFencedInstancedId):
		return true
	case errors.Is(err, sarama.ErrUnknownMemberId):
		return member == c.session.MemberID()
	case errors.Is(err, sarama.ErrIllegalGeneration):
		return !c.cfg.Cooperative && generation == c.session.GenerationID()
	}
	return false
}

// Stored answers the offset that the group has stored for a partition, -1 if
// none. It tries again what is worth it until ctx ends.
func Stored(ctx context.Context, client sarama.Client, group, topic string, partition int32) (int64, error) {
	for attempt := 1; ; attempt++ {
		offset, err := fetchOffset(client, group, topic, partition)
		if err == nil {
			return offset, nil
		}
		if attempt > 1 {
			_ = client.RefreshCoordinator(group)
		}
		if !wait.For(backoff(attempt), ctx.Done()) {
			return 0, errors.Join(err, context.Cause(ctx))
		}
	}
}

func fetchOffset(client sarama.Client, group, topic string, partition int32) (int64, error) {
	coordinator, err := client.Coordinator(group)
	if err != nil {
		return 0, err
	}
	request := sarama.NewOffsetFetchRequest(client.Config().Version, group, map[string][]int32{topic: {partition}})
	response, err := coordinator.FetchOffset(request)
	if err != nil {
		_ = coordinator.Close()
		return 0, err
	}
	if kerr := response.GroupError(); errors.Is(kerr, sarama.ErrGroupIDNotFound) {
		return -1, nil // a group that never committed
	} else if kerr != sarama.ErrNoError {
		return 0, kerr
	}
	block := response.GetBlock(topic, partition)
	if block == nil {
		return -1, nil
	}
	if block.Err != sarama.ErrNoError {
		return 0, block.Err
	}
	return block.Offset, nil
}
