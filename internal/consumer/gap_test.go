package consumer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// A partition that is paused for want of room gives up marks that it waits for: what waits behind them may need
// the room. One that somebody has paused waits: its settled records do not come again for that.
func TestMarksUnderAPause(t *testing.T) {
	for name, why := range map[string]reason{"no room": noRoom, "by hand": byHand} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &Claim{base: newBase(&Config{Logger: watermill.NopLogger{}, Resources: NewResources(1<<20, 0)}), logger: watermill.NopLogger{}}
				c.logEnd = func() int64 { return 10 }
				c.portion = c.budget.Portion(0, c.logEnd, func(bool) {})
				c.gate = newGate(func() {}, func() {})
				c.gate.mark(why, true)
				c.gate.mark(noRoom, why == noRoom)
				c.part = partition.New[Task](partition.Config[*sarama.ConsumerMessage]{
					MaxInFlight: 1, Committed: true, Fingerprint: c.fingerprint, Marks: []ledger.Block{{Runs: []ledger.Run{{From: 0, To: 5}}}},
				})
				_, _ = c.part.Push(0, &sarama.ConsumerMessage{}, 1)
				g := gapLooks{next: c.part.Next(), since: time.Now()}
				time.Sleep(doubtAfter + time.Second)
				c.doubt(&g, c.part.Next())
				if given := c.part.Inherits() < 0; given != (why == noRoom) {
					t.Errorf("given up: %v", given)
				}
			})
		})
	}
}
