package consumer

import (
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
)

// mixed knows whether the group of a subscription with transactions has a member without.
type mixed struct {
	logger watermill.LoggerAdapter
	outage outage.Outage

	mu    sync.Mutex
	since time.Time // zero: it has none
}

// errMixed says what a member without transactions means.
var errMixed = errors.New("output of records in its partitions, and of those that it had, may appear twice: give all members of the group Transactions, and this version or a later one")

// group records what a rebalance has shown: whether all members have transactions.
func (m *mixed) group(all bool) {
	m.mu.Lock()
	switch {
	case all:
		m.since = time.Time{}
	case m.since.IsZero():
		m.since = time.Now()
	}
	m.mu.Unlock()
	if !all {
		m.remind()
	} else if report, reported := m.outage.Over(); reported {
		m.logger.Info("All members of the consumer group have Transactions", watermill.LogFields{"after": report.For.Round(time.Millisecond).String()})
	}
}

// remind logs now and then that it is so.
func (m *mixed) remind() {
	if m.begun().IsZero() {
		return
	}
	if report, due := m.outage.Failed(); due {
		m.logger.Error("The consumer group has a member without Transactions: its output is not exactly once", errMixed,
			watermill.LogFields{"mixed_for": report.For.Round(time.Millisecond).String()})
	}
}

// begun returns since when the group has a member without transactions, zero if it has none.
func (m *mixed) begun() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.since
}
