package consumer

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

const (
	// defaultLook is how often a claim is looked at. If it has received nothing for that long,
	// the broker is asked whether there is something.
	defaultLook = 15 * time.Second
	// The numbers of looks without anything, although the broker has more, until that is
	// reported, and until the subscription reconnects.
	lookTold, lookEnd = 2, 4
)

// FetchStalled describes a partition that receives nothing although the broker has records.
type FetchStalled struct {
	Offset    int64 // the next record to read
	End       int64 // of the partition
	For       time.Duration
	Reconnect bool // the subscription reconnects
}

var errFetchStalled = errors.New("a partition got no records though the broker has some")

// watchdog checks whether the claim receives what the broker has. A fetch may never return,
// through a fault of the client or the broker, without an error anywhere. It runs in its own
// goroutine, and costs the intake nothing.
func (c *Claim) watchdog() {
	w := &watchdog{Claim: c, every: cmp.Or(c.cfg.Look, defaultLook), seen: -1}
	ticker := time.NewTicker(w.every)
	defer ticker.Stop()
	gaps := time.NewTicker(gapLook)
	defer gaps.Stop()
	for {
		select {
		case <-ticker.C:
			if c.gate.has(undecodable) {
				c.examineAgain()
			}
			if w.look() {
				c.reconnect(errFetchStalled)
				return
			}
		case <-gaps.C:
			c.passGap(&w.gap, w.every)
		case <-c.suspected:
			c.examine()
		case <-c.draining:
			return
		}
	}
}

// watchdog is the state of that goroutine.
type watchdog struct {
	*Claim
	every time.Duration
	gap   gapLooks
	seen  int64       // the next offset at the last look
	tail  reread.Tail // what the broker said
	looks int         // consecutive looks at which there was nothing although the broker was asked
}

// look checks whether the partition has received something since the last look. It reports
// whether the subscription has to reconnect.
func (w *watchdog) look() (reconnect bool) {
	switch next := w.part.Next(); {
	case next != w.seen || w.gate.closed():
		if w.looks >= lookTold {
			w.logger.Info("Partition continues", watermill.LogFields{"failing_for": w.waited().String()})
		}
		w.seen, w.tail, w.looks = next, reread.Tail{Next: next}, 0
	case !w.tail.Waiting:
		w.ask()
		w.looks = 1 // a record that was just written has time until the next look
	default:
		w.looks++
		return w.stalled()
	}
	return false
}

func (w *watchdog) waited() time.Duration { return time.Duration(w.looks) * w.every }

// ask asks the broker whether it has records for the partition.
func (w *watchdog) ask() {
	tail, err := w.reader.Tail(w.draining, w.tail.Next)
	if w.tail = tail; err != nil {
		w.tail.Waiting = false
		w.logger.Debug("Cannot ask whether a partition that gets nothing has records", watermill.LogFields{"err": err.Error()})
		return
	}
	w.skip(w.seen, tail.Next)
}

// stalled reports records that do not come.
func (w *watchdog) stalled() (reconnect bool) {
	s := FetchStalled{Offset: w.tail.Next, End: w.tail.End, For: w.waited()}
	s.Reconnect = w.looks == lookEnd && w.reconnectFor(w.tail.Next)
	if w.looks == lookTold || s.Reconnect {
		w.tellStalled(s)
	}
	return s.Reconnect
}

func (c *Claim) tellStalled(s FetchStalled) {
	text := "Fetch stalled: the partition receives nothing although the broker has records"
	if s.Reconnect {
		text += ", the subscription reconnects"
	}
	c.logger.Error(text, fmt.Errorf("nothing for %v", s.For), watermill.LogFields{"kafka_partition_offset": s.Offset, "end_offset": s.End})
	c.cfg.Events.FetchStalled(c.topic, c.partition, s)
}

// reconnectFor reports whether reconnecting may help: it has not been tried at this offset.
func (c *Claim) reconnectFor(offset int64) bool {
	c.claimsMu.Lock()
	defer c.claimsMu.Unlock()
	if last, ok := c.stalls[c.place]; ok && last == offset {
		return false
	}
	c.stalls[c.place] = offset
	return true
}
