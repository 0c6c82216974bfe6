// Package letters stores dead letters: how many at once, in which order, and what happens if
// their destination fails or refuses them.
package letters

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

const (
	// queueLetters and mailLetters are how many letters are sent at once, by a Queue and by
	// all Queues of a Mail.
	queueLetters = 16
	mailLetters  = 64
	// A letter that failed is sent again after a pause between these two. The first one that
	// is stored makes letterBurst others be sent at once, and so does each of these.
	minPause    = 100 * time.Millisecond
	maxPause    = time.Second
	letterBurst = 4
	// refusedPause is the pause for letters that are refused for good: a person has to act.
	refusedPause = 30 * time.Second
)

// Letter is a dead letter to store. Its functions are called from several goroutines, one
// after the other.
type Letter struct {
	Key    []byte // letters of one key are sent in order; nil if it has none
	Offset int64
	// Send stores it. If it fails it is called again. It is application code: it may panic,
	// and it may not return.
	Send func(ctx context.Context) error
	// Tell is called after each Send. If givenUp is true it was the last one.
	Tell func(err error, givenUp bool)
	// Release is called once it is stored or given up. SetAside is called each time it is
	// refused for good.
	Release, SetAside func()
}

// Queue has the letters of a claim that are not stored yet. A letter only waits for an earlier
// one of its key that is not refused for good. The record of a letter that is not stored at
// the end stays unsettled: the next owner delivers it again.
type Queue struct {
	mail   *Mail
	ctx    context.Context // of the assignment: the context of a handler may have ended
	logger watermill.LoggerAdapter
	giveUp bool // give letters up that are refused for good

	mu        sync.Mutex
	ready     []*letter            // to be sent
	failed    again                // to send again
	refused   again                // refused for good; sent again nevertheless
	behind    map[string][]*letter // by key; a key is present while an earlier letter of it is open
	workers   int
	sending   int           // workers in Send
	pause     time.Duration // before the next of failed
	hurry     bool          // a drain has begun
	closed    bool
	abandoned bool          // nobody waits for the remaining workers
	ended     chan struct{} // closed when the queue is closed and no worker remains
}

type letter struct {
	Letter
	aside    bool // refused for good: those behind it have been passed on
	failures int  // used by Mail: above 0 while the letter counts as failing
	refused  bool // used by Mail: the letter counts as refused
}

// again has letters to send again, those that were sent longest ago first.
type again struct {
	letters []*letter
	timer   *time.Timer          // nil: not armed
	pause   func() time.Duration // before the next one
}

// Queue returns an empty queue. ctx ends when the assignment ends.
func (m *Mail) Queue(ctx context.Context, logger watermill.LoggerAdapter, giveUp bool) *Queue {
	q := &Queue{mail: m, ctx: ctx, logger: logger, giveUp: giveUp, behind: map[string][]*letter{}, ended: make(chan struct{})}
	q.failed.pause = q.nextPause
	q.refused.pause = func() time.Duration { return refusedPause }
	return q
}

// Add adds a letter to be stored.
func (q *Queue) Add(l Letter) {
	it := &letter{Letter: l}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	if it.Key != nil {
		queue, open := q.behind[string(it.Key)]
		if open {
			q.behind[string(it.Key)] = append(queue, it)
			return
		}
		q.behind[string(it.Key)] = nil
	}
	q.ready = append(q.ready, it)
	q.pump()
}

// Hurry sends all failed letters again, from now on without growing pauses: a drain may be
// short.
func (q *Queue) Hurry() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hurry = true
	q.resume(&q.failed, len(q.failed.letters))
	q.pump()
}

// Stop ends the queue, whose ctx has ended. The channel that it returns is closed once no Send
// is under way.
func (q *Queue) Stop() (ended <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, a := range []*again{&q.failed, &q.refused} {
		if a.timer != nil {
			a.timer.Stop()
		}
	}
	for _, it := range slices.Concat(q.ready, q.failed.letters, q.refused.letters) {
		q.mail.forget(it)
	}
	q.ready, q.failed.letters, q.refused.letters, q.behind = nil, nil, nil, nil
	if q.workers == 0 {
		close(q.ended)
	}
	return q.ended
}

// Abandon leaves letters behind whose Send has not returned after Stop, and frees their places
// for others.
func (q *Queue) Abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.abandoned = true
	for range q.sending {
		<-q.mail.room
	}
}

// sort puts a letter that was sent where it belongs, and passes on the letters behind it.
func (q *Queue) sort(it *letter, o outcome) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sending--
	if !q.abandoned {
		<-q.mail.room
	}
	wasAside := it.aside
	it.aside = o.refused()
	if q.closed {
		q.mail.forget(it)
		return
	}
	switch {
	case o.over():
		q.pause = 0
		if wasAside {
			q.resume(&q.refused, letterBurst)
		}
		q.resume(&q.failed, letterBurst)
	case o.refused():
		q.later(&q.refused, it)
	default:
		it.aside = wasAside // its key has been passed on before
		q.later(&q.failed, it)
	}
	if it.Key != nil && !wasAside && (it.aside || o.over()) {
		q.passOn(string(it.Key))
	}
	q.pump()
}

// passOn makes the next letter of a key ready. The caller holds mu, as for those below.
func (q *Queue) passOn(key string) {
	queue := q.behind[key]
	if len(queue) == 0 {
		delete(q.behind, key)
		return
	}
	q.ready = append(q.ready, queue[0])
	q.behind[key] = queue[1:]
}

// later schedules a letter to be sent again.
func (q *Queue) later(a *again, it *letter) {
	a.letters = append(a.letters, it)
	q.arm(a)
}

func (q *Queue) arm(a *again) {
	if a.timer == nil && len(a.letters) > 0 {
		a.timer = time.AfterFunc(a.pause(), func() { q.oneOf(a) })
	}
}

// oneOf is called by a timer: one letter is sent again.
func (q *Queue) oneOf(a *again) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a.timer = nil
	if !q.closed {
		q.resume(a, 1)
		q.arm(a)
		q.pump()
	}
}

// resume makes the first n letters ready.
func (q *Queue) resume(a *again, n int) {
	for range min(n, len(a.letters)) {
		q.ready = append(q.ready, pop(&a.letters))
	}
}

// nextPause returns the pause after the latest one.
func (q *Queue) nextPause() time.Duration {
	q.pause = min(max(2*q.pause, minPause), maxPause)
	if q.hurry {
		q.pause = minPause
	}
	return q.pause
}

func pop(queue *[]*letter) *letter {
	first := (*queue)[0]
	(*queue)[0] = nil
	*queue = (*queue)[1:]
	return first
}
