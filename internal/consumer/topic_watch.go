package consumer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
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
	changed   func()                          // called when topics have come or gone
	covers    func(partitions map[string]int) // called with the number of each topic's partitions, of those that exist
	every     time.Duration
	asks      chan ask
	ctx       context.Context
	stop      func()
	searched  time.Time // when all topics were last asked for; the watch's own
}

// ask is a request to look now.
type ask struct {
	search bool // also for topics that patterns match
	done   chan struct{}
}

// watchTopics starts a watch. Its stop waits for its end.
func (s *Subscription) watchTopics(ctx context.Context, client sarama.Client, recreated, changed func(), covers func(map[string]int)) *topicWatch {
	w := &topicWatch{
		s: s, client: client, recreated: recreated, changed: changed, covers: covers,
		every: topicLook, asks: make(chan ask), searched: time.Now(),
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
		var waiting []chan struct{}
		search := false
		add := func(a ask) {
			waiting = append(waiting, a.done)
			search = search || a.search
		}
		select {
		case a := <-w.asks:
			add(a)
		case <-ticker.C:
			often := w.s.cfg.Sarama.Metadata.RefreshFrequency
			search = len(w.s.topics.list()) == 0 || often > 0 && time.Since(w.searched) >= often-w.every/2
		case <-w.ctx.Done():
			return
		}
		for more := true; more; { // one response serves them all
			select {
			case a := <-w.asks:
				add(a)
			default:
				more = false
			}
		}
		w.ask(search && w.s.cfg.Topics.Patterns())
		for _, done := range waiting {
			close(done)
		}
	}
}

func (w *topicWatch) ask(search bool) {
	s := w.s
	names, version := s.topics.joining()
	if len(names) == 0 && !search {
		return
	}
	asked := names
	if search {
		asked = nil
	}
	all, cluster, err := topicsNow(w.client, asked)
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
		topic, t := s.topics.of(name), all[name]
		switch {
		case t == nil || t.Err == sarama.ErrUnknownTopicOrPartition:
			w.missing(name)
		case t.Err != sarama.ErrNoError && t.Err != sarama.ErrLeaderNotAvailable:
			s.logger(name).Debug("Cannot ask for the topic's id", watermill.LogFields{"err": t.Err.Error()})
		default:
			s.health.works(fetching, place{name, -1})
			if topic.exists(t.Uuid) && s.cfg.several() {
				topic.found(false)
				s.topics.appeared()
			}
			recreated = topic.saw(t.Uuid, cluster) || recreated
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
	if s.topics.changed(version) {
		w.changed()
	}
	w.covers(partitions)
}

var errNoTopic = errors.New("there is no topic that the pattern matches, or none that this client may describe")

// missing deals with a topic that does not exist. One that a pattern matched is given up, unless only
// one response says so: a broker that has just started may not know it yet.
func (w *topicWatch) missing(name string) {
	s := w.s
	since := s.topics.of(name).missing()
	if !s.topics.matched(name) {
		s.health.failed(fetching, place{name, -1}, failure{text: "The topic does not exist, waiting for it", err: sarama.ErrUnknownTopicOrPartition})
		return
	}
	if time.Since(since) >= w.every*3/4 {
		s.topics.gone(name)
		s.cfg.Logger.Info("A topic that matched was deleted and is no longer read", watermill.LogFields{"topic": name})
	}
}

// look asks for the ids now, and waits a short time for the response.
func (w *topicWatch) look() { w.request(false) }

// search is look that also takes up topics that were created.
func (w *topicWatch) search() { w.request(true) }

func (w *topicWatch) request(search bool) {
	timer := time.NewTimer(topicPatience)
	defer timer.Stop()
	done := make(chan struct{})
	select {
	case w.asks <- ask{search, done}:
	case <-timer.C:
		return
	case <-w.ctx.Done():
		return
	}
	select {
	case <-done:
	case <-timer.C:
	case <-w.ctx.Done():
	}
}

// refreshed keeps an interrupted fetch from continuing in a new topic.
func (w *topicWatch) refreshed(topics []string) error {
	w.look()
	for _, topic := range topics {
		if _, recreated := w.s.topics.of(topic).recreated(); recreated {
			return errTopicRecreated
		}
	}
	return nil
}
