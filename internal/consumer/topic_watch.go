package consumer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

const (
	// topicLook is how often the ids are read, in addition to when fetching was interrupted.
	topicLook = 5 * time.Second
	// topicPatience is how long a session, or a fetch that starts again, waits for the response.
	topicPatience = time.Second
)

// topicWatch watches the topics during a membership or, without a group, while they are read: their
// ids, and which ones there are that patterns match.
type topicWatch struct {
	s         *Subscription
	client    sarama.Client
	recreated func()                          // called when a new topic with the name of one is seen
	changed   func()                          // called when topics may have come or gone
	covers    func(partitions map[string]int) // called with the number of each topic's partitions, of those that exist
	every     time.Duration
	ctx       context.Context
	stop      func()
	searched  time.Time     // when all topics were last asked for; the watch's own
	kick      chan struct{} // a token: somebody waits for next

	mu     sync.Mutex
	next   chan struct{} // closed once the next look has ended
	search bool          // it also looks for topics that patterns match
}

// watchTopics starts a watch. Its stop waits for its end.
func (s *Subscription) watchTopics(ctx context.Context, client sarama.Client, recreated, changed func(), covers func(map[string]int)) *topicWatch {
	w := &topicWatch{
		s: s, client: client, recreated: recreated, changed: changed, covers: covers,
		every: topicLook, searched: time.Now(), kick: make(chan struct{}, 1), next: make(chan struct{}),
	}
	if s.cfg.Memory != nil { // an hour passes in no time, but for each look
		w.every = time.Minute
	}
	if search := s.cfg.Sarama.Metadata.RefreshFrequency; search > 0 && s.cfg.Topics.Patterns() {
		w.every = min(w.every, search)
	}
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithCancel(ctx)
	var run sync.WaitGroup
	run.Go(w.run)
	w.stop = func() {
		cancel()
		interrupted := s.side.AbortLate(w.ctx.Done()) // the broker may be silent
		run.Wait()
		interrupted()
	}
	return w
}

func (w *topicWatch) run() {
	ticker := time.NewTicker(w.every)
	defer ticker.Stop()
	for {
		search := false
		select {
		case <-w.kick:
		case <-ticker.C:
			often := w.s.cfg.Sarama.Metadata.RefreshFrequency
			search = len(w.s.topics.list()) == 0 || often > 0 && time.Since(w.searched) >= often-w.every/2
		case <-w.ctx.Done():
			return
		}
		w.mu.Lock()
		looked := w.next
		search = search || w.search
		w.next, w.search = make(chan struct{}), false
		w.mu.Unlock()
		w.ask(search && w.s.cfg.Topics.Patterns())
		close(looked)
	}
}

func (w *topicWatch) ask(search bool) {
	s := w.s
	names := s.topics.list()
	if len(names) == 0 && !search {
		return
	}
	if search {
		names = nil
	}
	all, cluster, err := topicsNow(w.client, names)
	if err != nil {
		s.cfg.Logger.Debug("Cannot ask for the topic's id", watermill.LogFields{"err": err.Error()})
		return
	}
	if search {
		w.searched = time.Now()
		s.takeUp(all)
	}
	recreated, partitions := false, map[string]int{}
	for _, name := range s.topics.list() {
		switch t := all[name]; {
		case t == nil || t.Err == sarama.ErrUnknownTopicOrPartition:
			w.missing(name)
		case t.Err != sarama.ErrNoError && t.Err != sarama.ErrLeaderNotAvailable:
			s.logger(name).Debug("Cannot ask for the topic's id", watermill.LogFields{"err": t.Err.Error()})
		default:
			s.health.works(fetching, place{name, -1})
			recreated = s.topics.saw(name, t.Uuid, cluster) || recreated
			partitions[name] = len(t.Partitions)
		}
	}
	if len(s.topics.list()) == 0 {
		s.health.failed(fetching, everywhere, failure{text: "No topic matches, waiting for one", err: errNoTopic})
	} else {
		s.health.works(fetching, everywhere)
	}
	if recreated {
		w.recreated()
	}
	w.changed()
	w.covers(partitions)
}

var errNoTopic = errors.New("there is no topic that the pattern matches, or none that this client may describe")

// missing deals with a topic that does not exist. One that a pattern matched is given up, unless only
// one response says so: a broker that has just started may not know it yet.
func (w *topicWatch) missing(name string) {
	s := w.s
	since := s.topics.missing(name)
	if !s.topics.matched(name) {
		s.health.failed(fetching, place{name, -1}, failure{text: "The topic does not exist, waiting for it", err: sarama.ErrUnknownTopicOrPartition})
		return
	}
	if time.Since(since) >= w.every*3/4 {
		s.topics.gone(name)
		s.cfg.Logger.Info("A topic that matched was deleted and is no longer read", watermill.LogFields{"topic": name})
	}
}

// look asks for the ids now, and waits a short time for the response. With search it also takes up topics that were created.
func (w *topicWatch) look(search bool) {
	w.mu.Lock()
	w.search = w.search || search
	looked := w.next
	w.mu.Unlock()
	wait.Wake(w.kick)
	timer := time.NewTimer(topicPatience)
	defer timer.Stop()
	select {
	case <-looked:
	case <-timer.C:
	case <-w.ctx.Done():
	}
}

// refreshed keeps an interrupted fetch from continuing in a new topic.
func (w *topicWatch) refreshed(topics []string) error {
	w.look(false)
	for _, topic := range topics {
		if w.s.topics.of(topic).recreated() {
			return errTopicRecreated
		}
	}
	return nil
}
