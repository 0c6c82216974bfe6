package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

const (
	// claimLetters and allLetters are how many letters are sent at once, by a claim
	// and by a subscription.
	claimLetters = 16
	allLetters   = 64
	// One letter that failed is tried again after a pause between these two. The
	// first one that is stored brings letterBurst others back, and so does each of these.
	minLetterPause = 100 * time.Millisecond
	maxLetterPause = time.Second
	letterBurst    = 4
	// refusedPause is the same pause for those that are refused for good: a person has to act.
	refusedPause = 30 * time.Second
)

// Letter is a dead letter to be stored.
type Letter struct {
	// Send stores it. After it failed it is called again. It is the application's code:
	// it may panic, and it may not return.
	Send func(ctx context.Context) error
	// Tell is called after each Send. With givenUp there is no other one.
	Tell func(err error, givenUp bool)
}

// letters are the dead letters of a claim that are not stored yet. None waits for
// another, but for an earlier one of its key that is not refused for good. What is not
// stored at the end stays unsettled: the next owner delivers the record again.
type letters struct {
	mu      sync.Mutex
	ready   []*letter            // to be sent
	failed  []*letter            // to be sent again, those that were sent longest ago first
	refused []*letter            // for good
	behind  map[string][]*letter // by key, which is there while an earlier letter of it is open
	workers int
	sending int           // workers in Send
	pause   time.Duration // before the next of failed
	retry   *time.Timer   // of failed; nil: not armed
	later   *time.Timer   // of refused
	hurry   bool          // a drain has begun
	closed  bool
	leftTo  bool          // the workers that remain are waited for by nobody
	ended   chan struct{} // closed when no worker remains of a closed one
}

type letter struct {
	Letter
	d        *Delivery
	key      []byte
	aside    bool // refused for good: those behind it went on
	failures int  // sharedLetters' own: above 0 while it is one of those that fail
	refused  bool // sharedLetters' own: it is one of those that are refused
}

// sharedLetters is what the letters of a subscription have in common.
type sharedLetters struct {
	room chan struct{} // a token each that is sent

	mu       sync.Mutex
	nfailing int
	nrefused int
	stamps   string // the topic's message.timestamp.type, once it is known
	failing  outage.Outage
	refused  outage.Outage
}

// Letter has a rejected delivery's dead letter stored and then releases it. The
// verdict must have held it.
func (d *Delivery) Letter(l Letter) {
	c := d.claim
	it := &letter{Letter: l, d: d, key: d.Key()}
	c.letters.mu.Lock()
	defer c.letters.mu.Unlock()
	if c.letters.closed {
		return
	}
	if it.key != nil {
		queue, open := c.letters.behind[string(it.key)]
		if open {
			c.letters.behind[string(it.key)] = append(queue, it)
			return
		}
		if c.letters.behind == nil {
			c.letters.behind = map[string][]*letter{}
		}
		c.letters.behind[string(it.key)] = nil
	}
	c.letters.ready = append(c.letters.ready, it)
	c.pump()
}

// LogAppendTime reports whether the broker gives the topic's records their timestamps.
func (d *Delivery) LogAppendTime() bool {
	m := &d.claim.mail
	m.mu.Lock()
	stamps := m.stamps
	m.mu.Unlock()
	if stamps == "" {
		var err error
		if stamps, err = d.claim.reader.Setting("message.timestamp.type"); err != nil || stamps == "" {
			stamps = "CreateTime" // the default; nearly nobody has another one
		}
		if err == nil || errors.As(err, new(sarama.KError)) { // or we may not ask
			m.mu.Lock()
			m.stamps = stamps
			m.mu.Unlock()
		}
	}
	return stamps == "LogAppendTime"
}

// pump starts workers for what is ready. letters.mu is held.
func (c *Claim) pump() {
	l := &c.letters
	for !l.closed && l.workers < claimLetters && l.workers-l.sending < len(l.ready) {
		l.workers++
		go c.sendLetters()
	}
}

// sendLetters is a worker. A Send that ends its goroutine ends the worker with it.
func (c *Claim) sendLetters() {
	left := false
	defer func() {
		if !left {
			c.letters.mu.Lock()
			defer c.letters.mu.Unlock()
			c.leave()
			c.pump()
		}
	}()
	for {
		select {
		case c.mail.room <- struct{}{}:
		case <-c.ctx.Done():
			return
		}
		it := c.takeLetter()
		if it == nil {
			left = true
			<-c.mail.room
			return
		}
		c.send(it)
	}
}

// takeLetter returns a letter to send; without one the worker has left.
func (c *Claim) takeLetter() *letter {
	l := &c.letters
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ready) == 0 {
		c.leave()
		return nil
	}
	l.sending++
	return pop(&l.ready)
}

func (c *Claim) leave() {
	l := &c.letters
	if l.workers--; l.workers == 0 && l.closed {
		close(l.ended)
	}
}

func pop(queue *[]*letter) *letter {
	first := (*queue)[0]
	(*queue)[0] = nil
	*queue = (*queue)[1:]
	return first
}

// outcome is how a Send ended.
type outcome struct {
	err       error
	permanent bool
	gone      bool // the record is in Kafka no longer
}

var errExited = errors.New("the DeadLetter ended its goroutine (runtime.Goexit)")

func (c *Claim) send(it *letter) {
	o := outcome{err: errExited}
	defer func() { c.sent(it, o) }()
	defer func() {
		if r := recover(); r != nil {
			o = outcome{err: fmt.Errorf("the DeadLetter panicked: %v", r)}
		}
	}()
	if err := it.Send(c.ctx); err != nil { // not the handler's context, which may have ended
		o = outcome{worded{err, fmt.Sprint(err)}, isPermanent(err), errors.Is(err, reread.ErrGone)}
	} else {
		o = outcome{}
	}
}

// worded is an application's error whose Error method was called where it could panic.
type worded struct {
	error
	text string
}

func (w worded) Error() string { return w.text }
func (w worded) Unwrap() error { return w.error }

func isPermanent(err error) bool {
	var own interface{ Permanent() bool }
	return errors.As(err, &own) && own.Permanent()
}

// sent does what follows from a Send.
func (c *Claim) sent(it *letter, o outcome) {
	givenUp := o.gone || o.permanent && c.cfg.GiveUpLetters
	ended := o.err != nil && !givenUp && !o.permanent && c.ctx.Err() != nil
	if c.letters.abandoned() {
		c.sort(it, o, givenUp)
		return
	}
	c.mail.tell(c, it, o, givenUp, ended)
	it.Tell(o.err, givenUp)
	if o.err == nil || givenUp {
		it.d.Release()
	} else if o.permanent {
		c.part.SetAside(&it.d.Delivery)
	}
	c.sort(it, o, givenUp)
}

// sort puts a letter that was sent where it belongs, and those forward that it held up.
func (c *Claim) sort(it *letter, o outcome, givenUp bool) {
	l := &c.letters
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sending--
	if !l.leftTo {
		<-c.mail.room
	}
	wasAside := it.aside
	it.aside = o.permanent && !givenUp
	if l.closed {
		c.mail.forget(it)
		return
	}
	switch {
	case o.err == nil || givenUp:
		l.pause = 0
		if wasAside {
			c.resume(&l.refused, letterBurst)
		}
		c.resume(&l.failed, letterBurst)
	case o.permanent:
		l.refused = append(l.refused, it)
		if l.later == nil {
			l.later = time.AfterFunc(refusedPause, func() { c.tryAgain(&l.later, &l.refused) })
		}
	default:
		it.aside = wasAside // its key was passed on then
		l.failed = append(l.failed, it)
		if l.retry == nil {
			l.retry = time.AfterFunc(l.nextPause(), func() { c.tryAgain(&l.retry, &l.failed) })
		}
	}
	if it.key != nil && !wasAside && (it.aside || o.err == nil || givenUp) {
		if queue := l.behind[string(it.key)]; len(queue) > 0 {
			l.ready = append(l.ready, queue[0])
			l.behind[string(it.key)] = queue[1:]
		} else {
			delete(l.behind, string(it.key))
		}
	}
	c.pump()
}

// resume makes the first letters of a queue ready. letters.mu is held.
func (c *Claim) resume(queue *[]*letter, n int) {
	for range min(n, len(*queue)) {
		c.letters.ready = append(c.letters.ready, pop(queue))
	}
}

// tryAgain is called by a timer: one letter of the queue is sent again.
func (c *Claim) tryAgain(timer **time.Timer, queue *[]*letter) {
	l := &c.letters
	l.mu.Lock()
	defer l.mu.Unlock()
	*timer = nil
	if l.closed || len(*queue) == 0 {
		return
	}
	c.resume(queue, 1)
	if len(*queue) > 0 {
		pause := refusedPause
		if timer == &l.retry {
			pause = l.nextPause()
		}
		*timer = time.AfterFunc(pause, func() { c.tryAgain(timer, queue) })
	}
	c.pump()
}

// nextPause is what follows the latest pause. letters.mu is held.
func (l *letters) nextPause() time.Duration {
	l.pause = min(max(2*l.pause, minLetterPause), maxLetterPause)
	if l.hurry {
		l.pause = minLetterPause
	}
	return l.pause
}

// hurryLetters sends all letters that have failed once more, and again without growing
// pauses: a drain may be short.
func (c *Claim) hurryLetters() {
	c.letters.mu.Lock()
	defer c.letters.mu.Unlock()
	c.letters.hurry = true
	c.resume(&c.letters.failed, len(c.letters.failed))
	c.pump()
}

func (l *letters) abandoned() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leftTo
}

// stopLetters ends the letters of a claim, whose context has ended.
func (c *Claim) stopLetters() {
	l := &c.letters
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, timer := range []*time.Timer{l.retry, l.later} {
		if timer != nil {
			timer.Stop()
		}
	}
	for _, it := range slices.Concat(l.ready, l.failed, l.refused) {
		c.mail.forget(it)
	}
	l.ready, l.failed, l.refused, l.behind = nil, nil, nil, nil
	l.ended = make(chan struct{})
	if l.workers == 0 {
		close(l.ended)
	}
}

// abandonLetters leaves those to themselves whose Send has not returned: their places
// are for the letters of others.
func (c *Claim) abandonLetters() {
	l := &c.letters
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leftTo = true
	for range l.sending {
		<-c.mail.room
	}
}
