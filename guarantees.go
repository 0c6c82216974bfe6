package ackpolicy

import (
	"fmt"
	"strings"
)

// Guarantees returns a text that says what this configuration guarantees.
func (s *Subscriber) Guarantees() string {
	c := &s.config
	parts := []string{"under every policy but AckFirst: at least once"}
	if c.Transactions != nil {
		parts = []string{
			"what handlers publish through Subscriber.Publisher appears exactly once, to readers with read_committed, in one transaction with offsets and dead letters",
			"handlers run at least once",
		}
	}
	if c.Policy != nil {
		parts = append(parts, "the policy of handlers without a middleware is "+c.Policy.String())
	}
	switch c.Ordering {
	case OrderByKey:
		parts = append(parts, "order per key")
	case Unordered:
		parts = append(parts, "no order")
	default:
		parts = append(parts, "order per partition")
	}
	group := c.Kafka.ConsumerGroup != ""
	switch {
	case !group:
		parts = append(parts, "no consumer group: nothing is committed, a restart begins at the configured position")
	case c.MaxUncommitted == Unlimited:
		parts = append(parts, "any number of records per partition replayed after a crash")
	default:
		parts = append(parts, fmt.Sprintf("at most %d records per partition replayed after a crash", c.MaxUncommitted))
	}
	if group && c.Transactions != nil {
		parts = append(parts, fmt.Sprintf("a process that dies may delay readers and its partitions for %v and up to 10s more", c.Transactions.Timeout), "AckFirst is refused")
	} else if group {
		parts = append(parts,
			fmt.Sprintf("none replayed after Close, a revocation or a restart whose handlers finish within %v, as far as the metadata of a commit has room", c.DrainTimeout),
			"under AckFirst: at most once, except for acks that a crash leaves uncommitted; with ConfirmFirst: at most once")
	} else {
		parts = append(parts, "under AckFirst: at most once per subscription")
	}
	return strings.Join(parts, "; ")
}
