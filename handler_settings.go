package ackpolicy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
)

// handlerSettings are what a Middleware has in place of the Subscriber's settings for failing
// records, within one subscription. Zero values are the Subscriber's.
type handlerSettings struct {
	by            *guarded
	outer         uint8 // the settings of the middleware around it, whose values it has where its own are zero
	maxDeliveries int
	maxAge        time.Duration
	backoff       func(attempt int, err error) time.Duration
	deadLetter    *letters
}

// A delivery has the number of its settings: their index in subscription.settings and 1, or one
// of these. Settings beyond mostSettings are not used.
const (
	noSettings          = 0 // those of its subscription's last handler
	subscribersSettings = 255
	mostSettings        = 254
)

// settingsOf returns the number of a middleware's settings.
func (s *subscription) settingsOf(m *guarded, outer uint8) uint8 {
	for {
		known := s.settings.Load()
		var all []*handlerSettings
		if known != nil {
			all = *known
		}
		if i := slices.IndexFunc(all, func(h *handlerSettings) bool { return h.by == m && h.outer == outer }); i >= 0 {
			return uint8(i + 1)
		}
		if len(all) == mostSettings {
			return subscribersSettings
		}
		var around handlerSettings
		if outer != noSettings && outer != subscribersSettings {
			around = *all[outer-1]
		}
		own := &handlerSettings{
			by: m, outer: outer, maxDeliveries: cmp.Or(m.MaxDeliveries, around.maxDeliveries), maxAge: cmp.Or(m.MaxAge, around.maxAge),
			backoff: m.Backoff, deadLetter: around.deadLetter,
		}
		if own.backoff == nil {
			own.backoff = around.backoff
		}
		if m.DeadLetter != nil && !s.detached {
			own.deadLetter = newLetters(s, m.DeadLetter, "Middleware.DeadLetter")
		}
		all = append(slices.Clip(all), own)
		if s.settings.CompareAndSwap(known, &all) {
			return uint8(len(all))
		}
	}
}

// handlerName returns the name of the last handler that ran under our middleware.
func (s *subscription) handlerName() string {
	if name := s.handler.Load(); name != nil {
		return *name
	}
	return ""
}

// handlerSettings returns those of the subscription's last handler that has some, or nil.
func (s *subscription) handlerSettings() *handlerSettings {
	if all := s.settings.Load(); all != nil {
		return (*all)[len(*all)-1]
	}
	return nil
}

// settings returns the settings of the middleware that the delivery has reached, or nil. One
// that has reached none (an outer middleware failed, somebody rejects the record by hand) has
// those of its subscription, and keeps them.
func (d *Delivery) settings() *handlerSettings {
	all := d.sub.settings.Load()
	if all == nil {
		return nil
	}
	d.ending.mu.Lock()
	defer d.ending.mu.Unlock()
	if d.own == noSettings {
		d.own = subscribersSettings
		if d.entered == nil && (d.batch == nil || !d.batch.wrapped.Load()) {
			d.own = uint8(len(*all))
		}
	}
	if d.own == subscribersSettings {
		return nil
	}
	return (*all)[d.own-1]
}

// likeTheSubscriber makes the delivery one that no middleware has settings for.
func (d *Delivery) likeTheSubscriber() {
	d.ending.mu.Lock()
	d.own = subscribersSettings
	d.ending.mu.Unlock()
}

// maxDeliveries returns the limit under some settings, which may be nil; 0 means none.
func (s *subscription) maxDeliveries(own *handlerSettings) int {
	n := int(s.sub.maxDeliveries.Load())
	if own != nil {
		n = cmp.Or(n, own.maxDeliveries)
	}
	return max(0, cmp.Or(n, s.sub.config.MaxDeliveries))
}

func (s *subscription) maxAge(own *handlerSettings) time.Duration {
	if own != nil && own.maxAge != 0 {
		return max(0, own.maxAge)
	}
	return s.sub.config.MaxAge
}

// destination returns where the letters of records under some settings go, or nil.
func (s *subscription) destination(own *handlerSettings) *letters {
	if own != nil && own.deadLetter != nil {
		return own.deadLetter
	}
	return s.deadLetter
}

// destinations returns all that are known.
func (s *subscription) destinations() (all []*letters) {
	if s.deadLetter != nil {
		all = append(all, s.deadLetter)
	}
	if settings := s.settings.Load(); settings != nil {
		for _, own := range *settings {
			if own.deadLetter != nil && !slices.Contains(all, own.deadLetter) {
				all = append(all, own.deadLetter)
			}
		}
	}
	return all
}

// openLetters opens the DeadLetter of the Subscriber for the topics that are known by name.
func (s *subscription) openLetters(ctx context.Context) (err error) {
	dead := s.sub.config.DeadLetter
	if dead == nil {
		return nil
	}
	s.deadLetter = newLetters(s, dead, "DeadLetter")
	for _, topic := range s.topics.Names {
		if broken := guard("the DeadLetter", func() { _, err = s.deadLetter.open(ctx, topic) }, nil); broken != nil {
			err = fmt.Errorf("ackpolicy: topic %s: %w", topic, broken)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// letterTopics returns the topics to which letters of a topic go.
func (s *subscription) letterTopics(topic string) (names []string) {
	for _, letters := range s.destinations() {
		var name func(string) string
		switch of := letters.of.(type) {
		case DeadLetterTopic:
			name = of.Topic
		case *DeadLetterTopic:
			name = of.Topic
		case DeadLetterPublisher:
			name = of.Topic
		case *DeadLetterPublisher:
			name = of.Topic
		default:
			continue
		}
		var call sync.WaitGroup // runtime.Goexit would end the caller
		call.Go(func() {
			// Subscribe, or the first letter, reports what goes wrong.
			_ = guard(letters.setting+".Topic", func() { names = append(names, topicFor(name, topic)) }, nil)
		})
		call.Wait()
	}
	return names
}

// closeLetters closes what was opened for letters.
func (s *subscription) closeLetters() error {
	var errs []error
	for _, letters := range s.destinations() {
		errs = append(errs, letters.close())
	}
	return errors.Join(errs...)
}

// letters is the DeadLetter of a subscription or a Middleware, for the topics that the subscription reads.
// Topics that a pattern matches, and Middlewares, are not known when the subscription starts: for them
// it is opened with the first letter. A topic whose destination cannot be opened does not delay the
// letters of others.
type letters struct {
	sub     *subscription
	of      DeadLetter
	setting string // its name

	mu     sync.Mutex // guards what follows
	topics map[string]*lettersOf
	closed bool
}

// lettersOf is the destination for the letters of one topic.
type lettersOf struct {
	turn chan struct{} // a token for whoever uses dead
	dead DeadLetter    // nil: not open
}

func newLetters(s *subscription, of DeadLetter, setting string) *letters {
	return &letters{sub: s, of: of, setting: setting, topics: map[string]*lettersOf{}}
}

// Send implements DeadLetter.
func (l *letters) Send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter) error {
	dead, err := l.open(ctx, letter.Topic)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", l.setting, err)
	}
	return dead.Send(ctx, record, letter)
}

// open returns the destination for letters of a topic.
func (l *letters) open(ctx context.Context, topic string) (DeadLetter, error) {
	to := l.to(topic)
	select {
	case to.turn <- struct{}{}:
		defer func() { <-to.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if to.dead != nil {
		return to.dead, nil
	}
	if l.isClosed() {
		return nil, consumer.ErrClosing
	}
	dead, err := l.sub.openDeadLetter(ctx, l.of, topic)
	if err == nil {
		to.dead = dead
	}
	return dead, err
}

func (l *letters) to(topic string) *lettersOf {
	l.mu.Lock()
	defer l.mu.Unlock()
	to := l.topics[topic]
	if to == nil {
		to = &lettersOf{turn: make(chan struct{}, 1)}
		l.topics[topic] = to
	}
	return to
}

func (l *letters) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// close waits for open calls, whose contexts have ended.
func (l *letters) close() error {
	l.mu.Lock()
	l.closed = true
	topics := l.topics
	l.topics = map[string]*lettersOf{}
	l.mu.Unlock()
	var errs []error
	for _, to := range topics {
		to.turn <- struct{}{}
		if to.dead != nil {
			errs = append(errs, closeDeadLetter(to.dead))
			to.dead = nil
		}
		<-to.turn
	}
	return errors.Join(errs...)
}
