package letters

import (
	"sync"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
)

// Mail has what the letters of a subscription share: room to send, and log lines.
type Mail struct {
	room chan struct{} // a token for each letter that is being sent

	mu       sync.Mutex
	nfailing int
	nrefused int

	failing outage.Outage
	refused outage.Outage
}

// New returns an empty Mail.
func New() *Mail { return &Mail{room: make(chan struct{}, mailLetters)} }

// log logs the result of a Send.
func (q *Queue) log(it *letter, o outcome) {
	fields := watermill.LogFields{"kafka_partition_offset": it.Offset}
	switch {
	case o.gone:
		q.mail.forget(it)
		q.logger.Error("Dead letter given up: its record was pushed out of memory and is no longer in Kafka", o.err, fields)
	case o.givenUp:
		q.mail.forget(it)
		q.logger.Error("Dead letter refused for good: its record is given up", o.err, fields)
	case o.err == nil:
		q.logStored(it)
	case o.permanent:
		q.logRefused(it, o.err, fields)
	case q.ctx.Err() != nil: // the end of the assignment is logged elsewhere
		q.mail.forget(it)
	default:
		q.logFailed(it, o.err, fields)
	}
}

func (q *Queue) logFailed(it *letter, err error, fields watermill.LogFields) {
	m := q.mail
	m.mu.Lock()
	if it.failures++; it.failures == 1 {
		m.nfailing++
	}
	fields["letters_waiting"] = m.nfailing
	m.mu.Unlock()
	report, tell := m.failing.Failed()
	fields = report.AddTo(fields).Add(watermill.LogFields{"attempt": it.failures})
	if tell {
		q.logger.Error("Dead letter not stored, retrying: its record is kept, and nothing is committed past it", err, fields)
	} else {
		q.logger.Debug("Dead letter not stored", fields.Add(watermill.LogFields{"err": err.Error()}))
	}
}

func (q *Queue) logRefused(it *letter, err error, fields watermill.LogFields) {
	m := q.mail
	m.mu.Lock()
	if it.failures > 0 {
		it.failures = 0
		m.nfailing--
	}
	if !it.refused {
		it.refused = true
		m.nrefused++
	}
	fields["letters_refused"] = m.nrefused
	m.mu.Unlock()
	report, tell := m.refused.Failed()
	fields = report.AddTo(fields)
	if tell {
		q.logger.Error("Dead letter refused for good: its record is kept and nothing is committed past it. Change the destination, or set SubscriberConfig.OnUnstorable", err, fields)
	} else {
		q.logger.Debug("Dead letter refused for good", fields.Add(watermill.LogFields{"err": err.Error()}))
	}
}

func (q *Queue) logStored(it *letter) {
	failing, refused := q.mail.remove(it)
	if failing {
		if report, tell := q.mail.failing.Over(); tell {
			q.logger.Info("Dead letters are stored again", report.AddTo(nil))
		}
	}
	if refused {
		if report, tell := q.mail.refused.Over(); tell {
			q.logger.Info("Dead letters that were refused are stored", report.AddTo(nil))
		}
	}
}

// forget removes a letter from the counts that will not be stored by us.
func (m *Mail) forget(it *letter) {
	failing, refused := m.remove(it)
	if failing {
		m.failing.Over()
	}
	if refused {
		m.refused.Over()
	}
}

// remove removes a letter. It reports whether it was the last one that failed, or was refused.
func (m *Mail) remove(it *letter) (failing, refused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if it.failures > 0 {
		it.failures = 0
		m.nfailing--
		failing = m.nfailing == 0
	}
	if it.refused {
		it.refused = false
		m.nrefused--
		refused = m.nrefused == 0
	}
	return failing, refused
}
