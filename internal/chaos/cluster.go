package chaos

import (
	"fmt"
	"sync"
	"time"
)

// Cluster is what can be done to the brokers. Runs at the same time have one in common: what befalls the brokers befalls
// all of them, one thing at a time, and each run's ledger says so.
type Cluster struct {
	SlowCommits func(on bool)
	Restart     func() error // of one broker; returns when it is up
	Move        func() error // of the coordinators

	mu      sync.Mutex
	ledgers map[*Ledger]bool
	busy    sync.Mutex
}

// join has a ledger get what is done to the brokers, until it leaves.
func (c *Cluster) join(l *Ledger) (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ledgers == nil {
		c.ledgers = map[*Ledger]bool{}
	}
	c.ledgers[l] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.ledgers, l)
	}
}

// do performs a fault, unless one is under way.
func (c *Cluster) do(a Action) error {
	perform := c.Restart
	switch a.Fault {
	case SlowCommits:
		c.SlowCommits(true)
		time.Sleep(a.For)
		c.SlowCommits(false)
		return nil
	case MoveCoordinators:
		perform = c.Move
	}
	if perform == nil {
		return fmt.Errorf("these brokers have no %s", a.Fault)
	}
	if !c.busy.TryLock() {
		return nil
	}
	defer c.busy.Unlock()
	c.write(Broken, a.Fault)
	defer c.write(Repaired, a.Fault)
	return perform()
}

func (c *Cluster) write(kind string, fault Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for l := range c.ledgers {
		l.About(Parent, kind, string(fault))
	}
}
