package letters

import (
	"errors"
	"fmt"

	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// pump starts workers for letters that are ready. The caller holds mu.
func (q *Queue) pump() {
	for !q.closed && q.workers < queueLetters && q.workers-q.sending < len(q.ready) {
		q.workers++
		go q.work()
	}
}

// work sends letters that are ready. A Send that calls runtime.Goexit ends the worker too.
func (q *Queue) work() {
	left := false
	defer func() {
		if !left {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.leave()
			q.pump()
		}
	}()
	for {
		select {
		case q.mail.room <- struct{}{}:
		case <-q.ctx.Done():
			return
		}
		it := q.take()
		if it == nil {
			left = true
			<-q.mail.room
			return
		}
		q.send(it)
	}
}

// take returns a letter to send, or nil, and the worker has left.
func (q *Queue) take() *letter {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.ready) == 0 {
		q.leave()
		return nil
	}
	q.sending++
	return pop(&q.ready)
}

// leave ends a worker. The caller holds mu.
func (q *Queue) leave() {
	if q.workers--; q.workers == 0 && q.closed {
		close(q.ended)
	}
}

// outcome is the result of a Send.
type outcome struct {
	err       error
	permanent bool
	gone      bool // the record is no longer in Kafka
	givenUp   bool
}

// over reports whether there will be no other Send.
func (o outcome) over() bool { return o.err == nil || o.givenUp }

// refused reports whether the letter is kept although its destination refuses it for good.
func (o outcome) refused() bool { return o.permanent && !o.givenUp }

var errExited = errors.New("the DeadLetter ended its goroutine (runtime.Goexit)")

func (q *Queue) send(it *letter) {
	o := outcome{err: errExited}
	defer func() { q.sent(it, o) }()
	defer func() {
		if r := recover(); r != nil {
			o = outcome{err: fmt.Errorf("the DeadLetter panicked: %v", r)}
		}
	}()
	err := it.Send(q.ctx)
	if err == nil {
		o = outcome{}
		return
	}
	failed := outcome{err: worded{err, fmt.Sprint(err)}, permanent: isPermanent(err), gone: errors.Is(err, reread.ErrGone)}
	failed.givenUp = failed.gone || failed.permanent && q.giveUp
	o = failed
}

// worded is an error of the application whose Error method was called under guard.
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

// sent handles the result of a Send.
func (q *Queue) sent(it *letter, o outcome) {
	if q.isAbandoned() {
		q.sort(it, o)
		return
	}
	q.log(it, o)
	it.Tell(o.err, o.givenUp)
	if o.over() {
		it.Release()
	} else if o.permanent {
		it.SetAside()
	}
	q.sort(it, o)
}

func (q *Queue) isAbandoned() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.abandoned
}
