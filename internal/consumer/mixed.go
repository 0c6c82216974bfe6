package consumer

import (
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
)

// mixed knows whether the group of a subscription with transactions has a member without.
type mixed struct {
	logger watermill.LoggerAdapter
	outage outage.Outage
}

// errMixed says what a member without transactions means.
var errMixed = errors.New("output of records in its partitions, and of those that it had, may appear twice: give all members of the group Transactions, and this version or a later one")

// group records what a rebalance has shown: whether all members have transactions.
func (m *mixed) group(all bool) {
	if !all {
		m.tell(m.outage.Failed())
	} else if report, reported := m.outage.Over(); reported {
		m.logger.Info("All members of the consumer group have Transactions", watermill.LogFields{"after": report.For.Round(time.Millisecond).String()})
	}
}

// remind logs now and then that it is so.
func (m *mixed) remind() { m.tell(m.outage.Lasts()) }

func (m *mixed) tell(report outage.Report, due bool) {
	if due {
		m.logger.Error("The consumer group has a member without Transactions: its output is not exactly once", errMixed,
			watermill.LogFields{"mixed_for": report.For.Round(time.Millisecond).String()})
	}
}
