package transactions_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// TestKills kills members, and stops others as a deploy does, while they copy.
func TestKills(t *testing.T) {
	for _, cooperative := range []bool{false, true} {
		t.Run(fmt.Sprintf("cooperative=%v", cooperative), func(t *testing.T) {
			t.Parallel()
			const partitions, rounds, perRound = 4, 6, 300
			s := newSpec(t, partitions, 0)
			s.Cooperative = cooperative
			ledger := &testkit.Ledger{}
			members := []*testkit.Child{}
			for range 2 {
				members = append(members, testkit.StartChild(t, childEnv, s, ledger))
			}
			records := 0
			for round := range rounds {
				s.produce(t, partitions, records, perRound)
				records += perRound
				at := round % len(members)
				if round%3 == 2 {
					members[at].Stop()
					<-members[at].Ended()
				} else {
					members[at].Kill()
				}
				members[at] = testkit.StartChild(t, childEnv, s, ledger)
			}
			s.waitSettled(t)
			for _, m := range members {
				m.Stop()
				<-m.Ended()
			}
			s.judge(t, partitions, records)
		})
	}
}

// produce writes records into each partition, which has some, and waits until the members are amid them.
func (s spec) produce(t *testing.T, partitions int32, before, records int) {
	t.Helper()
	for p := range partitions {
		testkit.Produce(t, s.In, p, keyed(p, before, records)...)
	}
	s.waitBegun(t, int64(before+records-rand.N(records)))
}

// TestZombies pauses members for longer than their session, and lets them go on when others have their partitions.
func TestZombies(t *testing.T) {
	for _, cooperative := range []bool{false, true} {
		t.Run(fmt.Sprintf("cooperative=%v", cooperative), func(t *testing.T) {
			if cooperative && !testkit.Shared.Real() {
				t.Skip("kfake sends no response to a SyncGroup if the leader is given up meanwhile")
			}
			t.Parallel()
			const partitions, rounds, perRound = 4, 2, 400
			s := newSpec(t, partitions, 0)
			s.Cooperative = cooperative
			members := []*testkit.Child{testkit.StartChild(t, childEnv, s, &testkit.Ledger{}), testkit.StartChild(t, childEnv, s, &testkit.Ledger{})}
			testkit.AwaitGroupOfTwo(t, testkit.Shared, s.Group)
			records := 0
			for round := range rounds {
				s.produce(t, partitions, records, perRound)
				records += perRound
				zombie := members[round%2]
				zombie.Pause()
				paused := time.Now()
				testkit.Eventually(t, "the group to give the paused member up", func() bool {
					n, state, err := brokertest.Members(testkit.Shared.Addrs(), s.Group)
					return err == nil && n == 1 && state == "Stable"
				})
				s.waitSettled(t)
				testkit.Eventually(t, "the end of the paused member's transaction", func() bool {
					open, err := brokertest.OpenTransactions(testkit.Shared.Addrs(), s.Group+"-", s.Out)
					return err == nil && len(open) == 0
				})
				t.Logf("all was settled, and no transaction was open, %v after the pause", time.Since(paused).Round(time.Millisecond))
				zombie.Resume()
				testkit.AwaitGroupOfTwo(t, testkit.Shared, s.Group)
			}
			for _, m := range members {
				m.Stop()
				<-m.Ended()
			}
			s.judge(t, partitions, records)
		})
	}
}
