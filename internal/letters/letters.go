// Package letters has dead letters stored: how many at once, in which order, and what
// becomes of those whose destination fails or refuses them.
package letters

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

const (
	// queueLetters and mailLetters are how many letters are sent at once, by a Queue and
	// by all of a Mail.
	queueLetters = 16
	mailLetters  = 64
	// One letter that failed is tried again after a pause between these two. The
	// first one that is stored brings letterBurst others back, and so does each of these.
	minPause    = 100 * time.Millisecond
	maxPause    = time.Second
	letterBurst = 4
	// refusedPause is the same pause for those that are refused for good: a person has to act.
	refusedPause = 30 * time.Second
)

// Letter is a dead letter to be stored. Its functions are called from several goroutines,
// one after the other.
type Letter struct {
	Key    []byte // of its record; nil: none
	Offset int64
	// Send stores it. After it failed it is called again. It is the application's code:
	// it may panic, and it may not return.
	Send func(ctx context.Context) error
	// Tell is called after each Send. With givenUp there is no other one.
	Tell func(err error, givenUp bool)
	// Release is called once it is stored or given up, SetAside each time that it is
	// refused for good.
	Release, SetAside func()
}

// Queue are the letters of a claim that are not stored yet. None waits for another, but for
// an earlier one of its key that is not refused for good. What is not stored at the end
// stays unsettled: the next owner delivers the record again.
type Queue struct {
	mail   *Mail
	ctx    context.Context // of the assignment: a handler's may have ended
	logger watermill.LoggerAdapter
	giveUp bool // those that are refused for good

	mu        sync.Mutex
	ready     []*letter            // to be sent
	failed    again                // to be sent again
	refused   again                // for good; tried again nevertheless
	behind    map[string][]*letter // by key, which is there while an earlier letter of it is open
	workers   int
	sending   int           // workers in Send
	pause     time.Duration // before the next of failed
	hurry     bool          // a drain has begun
	closed    bool
	abandoned bool          // the workers that remain are waited for by nobody
	ended     chan struct{} // closed when no worker remains of a closed one
}

type letter struct {
	Letter
	aside    bool // refused for good: those behind it went on
	failures int  // Mail's: above 0 while it is one of those that fail
	refused  bool // Mail's: it is one of those that are refused
}

// again are letters to be sent again, those that were sent longest ago first.
type again struct {
	letters []*letter
	timer   *time.Timer          // nil: not armed
	pause   func() time.Duration // before the next one
}

// Queue returns a queue without letters. ctx ends when the partition is no longer ours.
func (m *Mail) Queue(ctx context.Context, logger watermill.LoggerAdapter, giveUp bool) *Queue {
	q := &Queue{mail: m, ctx: ctx, logger: logger, giveUp: giveUp, behind: map[string][]*letter{}, ended: make(chan struct{})}
	q.failed.pause = q.nextPause
	q.refused.pause = func() time.Duration { return refusedPause }
	return q
}

// Add has a letter stored.
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

// Hurry sends all letters that have failed once more, and again without growing pauses: a
// drain may be short.
func (q *Queue) Hurry() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hurry = true
	q.resume(&q.failed, len(q.failed.letters))
	q.pump()
}

// Stop ends the queue, whose ctx has ended. What it returns closes once no Send is under way.
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

// Abandon leaves those to themselves whose Send has not returned after Stop: their places
// are for the letters of others.
func (q *Queue) Abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.abandoned = true
	for range q.sending {
		<-q.mail.room
	}
}

// sort puts a letter that was sent where it belongs, and those forward that it held up.
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
		it.aside = wasAside // its key was passed on then
		q.later(&q.failed, it)
	}
	if it.Key != nil && !wasAside && (it.aside || o.over()) {
		q.passOn(string(it.Key))
	}
	q.pump()
}

// passOn makes the next letter of a key ready. mu is held, as in those below.
func (q *Queue) passOn(key string) {
	queue := q.behind[key]
	if len(queue) == 0 {
		delete(q.behind, key)
		return
	}
	q.ready = append(q.ready, queue[0])
	q.behind[key] = queue[1:]
}

// later has a letter sent again.
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

// nextPause is what follows the latest pause.
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
