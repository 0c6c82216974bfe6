package consumer

import (
	"context"
	"sync"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/budget"
	"github.com/ackpolicy/watermill-ackpolicy/internal/connections"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// Common is what subscriptions share: connections, memory, and the number of handlers.
type Common struct {
	pool   *connections.Pool
	budget *budget.Budget
	limit  *partition.Limit // nil: none

	evicting  sync.Mutex // held by the claim that evicts
	evictNext time.Time  // guarded by evicting

	mu  sync.Mutex
	all map[*shared]struct{} // the subscriptions that run
}

// NewCommon returns what has so many bytes for records, and runs so many handlers at once; 0: any number.
func NewCommon(bytes int64, inFlight int) *Common {
	c := &Common{pool: connections.New(), budget: budget.New(bytes), all: map[*shared]struct{}{}}
	if inFlight > 0 {
		c.limit = partition.NewLimit(inFlight)
	}
	return c
}

// join connects, unless another subscription has.
func (c *Common) join(ctx context.Context, cfg *Config) (*connections.Lease, error) {
	return c.pool.Join(ctx, connections.Config{Brokers: cfg.Brokers, Clients: sharedConfigs(cfg.Sarama), Short: cfg.Side})
}

func (c *Common) enter(s *shared) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[s] = struct{}{}
}

func (c *Common) exit(s *shared) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, s)
}

// evict pushes all records that wait for long out of memory. All of them: a
// record's bytes lie in the response that brought it, with those of every
// partition on the broker, so that a few that stay would keep the rest.
func (c *Common) evict() {
	if !c.evicting.TryLock() {
		return // another claim is at it
	}
	defer c.evicting.Unlock()
	if time.Now().Before(c.evictNext) {
		return
	}
	soon := Now() + int64(evictAfter)
	for _, claim := range c.assigned() {
		claim.part.Evict(soon)
	}
	if c.budget.Crowded() || c.budget.Scarce() { // it costs a look at every record: not again at once
		c.evictNext = time.Now().Add(200 * time.Millisecond)
	}
}

// assigned returns the claims of all subscriptions.
func (c *Common) assigned() (claims []*Claim) {
	c.mu.Lock()
	all := make([]*shared, 0, len(c.all))
	for s := range c.all {
		all = append(all, s)
	}
	c.mu.Unlock()
	for _, s := range all {
		claims = append(claims, s.assigned()...)
	}
	return claims
}
