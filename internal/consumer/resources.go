package consumer

import (
	"context"
	"sync"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/budget"
	"github.com/ackpolicy/watermill-ackpolicy/internal/connections"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// Resources are what subscriptions share: connections, memory, and the number of handlers.
type Resources struct {
	pool   *connections.Pool
	budget *budget.Budget
	limit  *partition.Limit // nil: none

	evicting  sync.Mutex // held by the claim that evicts
	evictNext time.Time  // guarded by evicting

	mu  sync.Mutex
	all map[*base]struct{} // the subscriptions that run
}

// NewResources returns resources with memory for so many bytes of records, and so many handlers at
// once; 0 handlers means no limit.
func NewResources(bytes int64, inFlight int) *Resources {
	r := &Resources{pool: connections.New(), budget: budget.New(bytes), all: map[*base]struct{}{}}
	if inFlight > 0 {
		r.limit = partition.NewLimit(inFlight)
	}
	return r
}

// join connects, unless another subscription has.
func (r *Resources) join(ctx context.Context, cfg *Config) (*connections.Lease, error) {
	return r.pool.Join(ctx, connections.Config{Brokers: cfg.Brokers, Clients: sharedConfigs(cfg.Sarama), Short: cfg.Side})
}

func (r *Resources) enter(s *base) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[s] = struct{}{}
}

func (r *Resources) exit(s *base) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, s)
}

// evict pushes all records that wait for long out of memory. All of them: a
// record's bytes lie in the response that brought it, with those of every
// partition on the broker, so that a few that stay would keep the rest.
func (r *Resources) evict() {
	if !r.evicting.TryLock() {
		return // another claim is at it
	}
	defer r.evicting.Unlock()
	if time.Now().Before(r.evictNext) {
		return
	}
	soon := Now() + int64(evictAfter)
	for _, claim := range r.assigned() {
		claim.part.Evict(soon)
	}
	if r.budget.Crowded() || r.budget.Scarce() { // it costs a look at every record: not again at once
		r.evictNext = time.Now().Add(200 * time.Millisecond)
	}
}

// assigned returns the claims of all subscriptions.
func (r *Resources) assigned() (claims []*Claim) {
	r.mu.Lock()
	all := make([]*base, 0, len(r.all))
	for s := range r.all {
		all = append(all, s)
	}
	r.mu.Unlock()
	for _, s := range all {
		claims = append(claims, s.assigned()...)
	}
	return claims
}
