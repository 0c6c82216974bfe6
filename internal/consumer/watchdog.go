package consumer

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

const (
	// defaultLook is how often a claim is looked at. Nothing for that long has
	// the broker asked whether there is something.
	defaultLook = 15 * time.Second
	// Looks without anything, though the broker has more, until that is told, and
	// until the subscription reconnects.
	lookTold, lookEnd = 2, 4
)

// Stalled is a claim that gets nothing though the broker has more for it.
type Stalled struct {
	Offset    int64 // the next to be read
	End       int64 // of the partition
	For       time.Duration
	Reconnect bool // the subscription connects anew
}

var errStalled = errors.New("a partition got no records though the broker has some")

// watchdog looks whether the claim gets what the broker has. A fetch may fail to
// come back, by a fault of the client or the broker, without an error anywhere.
// It runs beside the claim's own goroutine, which it costs nothing.
func (c *Claim) watchdog() {
	every := c.cfg.Look
	if every == 0 {
		every = defaultLook
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	gaps := time.NewTicker(gapLook)
	defer gaps.Stop()
	var gap gapLooks
	var seen int64 = -1 // the next offset at the last look
	var tail reread.Tail
	looks := 0
	for {
		select {
		case <-ticker.C:
			if c.gate.has(undecodable) {
				c.examineAgain()
			}
		case <-gaps.C:
			c.passGap(&gap, every)
			continue
		case <-c.suspected:
			c.examine()
			continue
		case <-c.draining:
			return
		}
		if next := c.part.Next(); next != seen || c.gate.closed() {
			if looks >= lookTold {
				c.logger.Info("Partition goes on", watermill.LogFields{"failing_for": (time.Duration(looks) * every).String()})
			}
			seen, tail, looks = next, reread.Tail{Next: next}, 0
			continue
		}
		if !tail.Waiting {
			var err error
			if tail, err = c.reader.Tail(c.draining, tail.Next); err == nil {
				c.skip(seen, tail.Next)
			} else {
				tail.Waiting = false
				c.logger.Debug("Cannot ask whether a partition that gets nothing has records", watermill.LogFields{"err": err.Error()})
			}
			looks = 1
			continue // what has just been written is given until the next look
		}
		looks++
		stalled := Stalled{Offset: tail.Next, End: tail.End, For: time.Duration(looks) * every}
		stalled.Reconnect = looks == lookEnd && c.reconnectFor(tail.Next)
		if looks == lookTold || stalled.Reconnect {
			c.tellStalled(stalled)
		}
		if stalled.Reconnect {
			c.reconnect(errStalled)
			return
		}
	}
}

func (c *Claim) tellStalled(s Stalled) {
	text := "Partition stalled: it gets nothing though the broker has records"
	if s.Reconnect {
		text += ", the subscription reconnects"
	}
	c.logger.Error(text, fmt.Errorf("nothing for %v", s.For), watermill.LogFields{"kafka_partition_offset": s.Offset, "end_offset": s.End})
	if c.cfg.Events.Stalled != nil {
		c.cfg.Events.Stalled(c.topic, c.partition, s)
	}
}

// reconnectFor tells whether reconnecting may help: it has not been tried at
// this offset.
func (c *Claim) reconnectFor(offset int64) bool {
	c.claimsMu.Lock()
	defer c.claimsMu.Unlock()
	if last, ok := c.stalls[c.partition]; ok && last == offset {
		return false
	}
	c.stalls[c.partition] = offset
	return true
}
