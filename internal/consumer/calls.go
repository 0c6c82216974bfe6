package consumer

import (
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// callPatience is how long calls of application code may still take when an assignment has
// ended.
const callPatience = 500 * time.Millisecond

// calls has the calls of application code that are not made by slots: the task of a slot
// knows what it calls.
type calls struct {
	mu   sync.Mutex
	open map[*Delivery]string
}

// Calls records that application code is being called for the delivery until done is called.
// If the call outlives the assignment, it is named and left behind.
func (d *Delivery) Calls(name string) (done func()) {
	c := &d.claim.calls
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*Delivery]string{}
	}
	c.open[d] = name
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, d)
	}
}

// leaveCalls waits for what the claim has started: slots and letters. Application code that
// does not return is left behind. Its goroutine ends when it returns, and changes nothing.
func (c *Claim) leaveCalls(running []*Delivery, deadline time.Time) {
	letters := c.letters.Stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.slots.Wait()
		<-letters
		c.reader.Drop() // with what it has read ahead: a delivery that the application keeps keeps the claim
	}()
	for patience := callPatience; ; patience = callPatience / 10 {
		over := time.After(patience)
		select {
		case <-ended:
			if _, named := c.underWay(running); c.cfg.Batches != nil && len(named) > 0 {
				<-over // batchers are not the claim's: nobody waits for them
				if _, named = c.underWay(running); len(named) > 0 {
					c.tellLeft(named)
				}
			}
			return
		case <-over:
		}
		offering, named := c.underWay(running)
		if !offering && (len(named) > 0 || time.Now().After(deadline)) {
			c.tellLeft(named)
			c.letters.Abandon()
			return
		}
	}
}

// underWay returns which application code is being called for which offsets. offering reports
// whether a slot may still send a message, so that the output must stay open.
func (c *Claim) underWay(running []*Delivery) (offering bool, named map[int64]string) {
	named = map[int64]string{}
	for _, d := range running {
		call, offers := d.Handle.UnderWay()
		offering = offering || offers
		if call != "" {
			named[d.Offset()] = call
		}
	}
	c.calls.mu.Lock()
	defer c.calls.mu.Unlock()
	for d, call := range c.calls.open {
		named[d.Offset()] = call
	}
	return offering, named
}

func (c *Claim) tellLeft(named map[int64]string) {
	if len(named) == 0 {
		c.logger.Error("Partition released, but a request is still running", errors.New("a request got no response in time"), nil)
	}
	for offset, call := range named {
		c.logger.Error("Partition released, but application code has not returned: it is left behind, and its result is ignored",
			errors.New(call+" does not return"), watermill.LogFields{"kafka_partition_offset": offset, "call": call})
	}
}
