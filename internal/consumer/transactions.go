package consumer

import (
	"context"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/transact"
)

// Transactions configures the transactions of a subscription.
type Transactions struct {
	Sarama  *sarama.Config // of the producer; with the transactional id
	Timeout time.Duration  // after which the broker aborts one
}

// expiry is how often a broker looks for transactions whose timeout is over (its setting
// transaction.abort.timed.out.transaction.cleanup.interval.ms), and a little more.
const expiry = 12 * time.Second

// wait returns how long the transaction of a process that died may delay its successors.
func (t *Transactions) wait() time.Duration { return t.Timeout + expiry }

// newSender returns what writes the transactions, nil if there are none.
func newSender(cfg *Config) *transact.Sender {
	if cfg.Transactions == nil {
		return nil
	}
	return transact.New(cfg.Brokers, cfg.Group, cfg.Transactions.Sarama)
}

// recover ends a transaction that the last session left open, before the next one asks for
// the group's positions. If it fails, the broker ends it after its timeout.
func (s *Subscription) recover(ctx context.Context) {
	if s.transactions == nil {
		return
	}
	if err := s.transactions.RecoverUntil(ctx); err != nil {
		s.cfg.Logger.Debug("An open transaction cannot be ended yet", watermill.LogFields{"err": err.Error()})
	}
}

// closeTransactions ends the subscription's transactions.
func (s *Subscription) closeTransactions() {
	if s.transactions == nil {
		return
	}
	if err := s.transactions.Close(); err != nil {
		s.cfg.Logger.Info("A transaction may be open that could not be ended: it delays readers of its topics until the broker aborts it", watermill.LogFields{
			"err": err.Error(), "transaction_timeout": s.cfg.Transactions.Timeout.String(),
		})
	}
}

// Hold keeps what the delivery publishes for the transaction that stores its settlement. It
// returns false if the delivery is settled.
func (d *Delivery) Hold(output []partition.Output, bytes int64) bool {
	return d.claim.part.Hold(&d.Delivery, output, bytes)
}

// HoldLetter keeps the letter of a rejected delivery likewise. It returns false if the
// delivery waits for no letter.
func (d *Delivery) HoldLetter(letter partition.Output, bytes int64) bool {
	return d.claim.part.HoldLetter(&d.Delivery, letter, bytes)
}

// Discard throws away what the delivery has published so far.
func (d *Delivery) Discard() { d.claim.part.Discard(&d.Delivery) }
