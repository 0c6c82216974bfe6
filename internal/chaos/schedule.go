package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Fault is what is done to a member or to the broker.
type Fault string

// The faults. A session is lost by what is longer than its timeout.
const (
	Restart     Fault = "restart"      // Router.Close; a new process
	Cancel      Fault = "cancel"       // the context of Router.Run ends; a new process
	Kill        Fault = "kill"         // SIGKILL; a new process
	Pause       Fault = "pause"        // SIGSTOP and SIGCONT, shorter than the session timeout
	PauseLong   Fault = "pause-long"   // the same, longer: the session is lost
	Blink       Fault = "blink"        // connections are cut and refused for a moment
	CutLong     Fault = "cut-long"     // the same, longer: the session is lost
	StallLong   Fault = "stall-long"   // what it sends arrives too late, all of it: the session is lost
	Slow        Fault = "slow"         // a slow network
	CutRestart  Fault = "cut-restart"  // Router.Close without a network: the last commit cannot be made
	Join        Fault = "join"         // one more member for a while
	SlowCommits Fault = "slow-commits" // of all members
	// Of the brokers:
	BrokerRestart    Fault = "broker-restart"    // of one
	MoveCoordinators Fault = "move-coordinators" // of groups and transactions, to other brokers
)

// Action is a fault at a time. Those of one slot do not overlap.
type Action struct {
	At   time.Duration // since the beginning
	For  time.Duration
	Slot int // one of the three members'; joinSlot or brokerSlot
	Fault
}

func (a Action) String() string {
	return fmt.Sprintf("%.1fs slot %d %s %.1fs", a.At.Seconds(), a.Slot, a.Fault, a.For.Seconds())
}

const (
	slots      = 3
	joinSlot   = slots
	brokerSlot = slots + 1

	brokerRestart = 15 * time.Second // about
)

func (f Fault) graceful() bool { return f == Restart || f == Cancel || f == Join }

// Schedule is the same for the same spec and length. In calm, members only restart, join and leave.
func Schedule(spec Spec, length time.Duration) []Action {
	var all []Action
	// Each slot has faults of its own, so that they overlap between slots.
	pace := min(max(length/40, 2*time.Second), 8*time.Second)
	first := []Fault{Restart, Kill, PauseLong} // even a short run has these
	dice := rand.New(rand.NewPCG(spec.Seed, 0))
	dice.Shuffle(len(first), func(i, j int) { first[i], first[j] = first[j], first[i] })
	for slot := range brokerSlot + 1 {
		if slot == brokerSlot && (spec.Calm || len(spec.Cluster) == 0) {
			break
		}
		r := rand.New(rand.NewPCG(spec.Seed, uint64(slot)+1))
		span := func(from, to time.Duration) time.Duration {
			return (from + time.Duration(r.Int64N(int64(to-from)))).Truncate(time.Millisecond)
		}
		at := span(pace/2, 2*pace)
		for n := 0; ; n++ {
			a := Action{At: at, Slot: slot, Fault: spec.pick(r, slot)}
			if n == 0 && slot < slots && !spec.Calm {
				a.Fault = first[slot]
			}
			switch a.Fault {
			case Pause, Blink:
				a.For = span(50*time.Millisecond, session/3)
			case PauseLong, CutLong, StallLong:
				a.For = span(session+session/3, 2*session)
			case CutRestart:
				a.For = span(100*time.Millisecond, session/2)
			case BrokerRestart:
				a.For = brokerRestart
			case Slow, SlowCommits, Join:
				a.For = span(pace, 3*pace)
			}
			if a.At+a.For > length {
				break
			}
			all = append(all, a)
			at += a.For + span(pace/2, 3*pace)
		}
	}
	slices.SortStableFunc(all, func(a, b Action) int { return cmp.Compare(a.At, b.At) })
	return all
}

func (s Spec) pick(r *rand.Rand, slot int) Fault {
	switch {
	case slot == joinSlot:
		return Join
	case slot == brokerSlot:
		return s.Cluster[r.IntN(len(s.Cluster))]
	case s.Calm:
		return []Fault{Restart, Cancel}[r.IntN(2)]
	}
	kinds := []Fault{
		Restart, Restart, Restart, Cancel, Cancel, Kill, Kill, Kill,
		Pause, PauseLong, PauseLong, Blink, Blink, CutLong, StallLong, Slow, CutRestart,
	}
	return kinds[r.IntN(len(kinds))]
}

// Describe lists the actions, one per line.
func Describe(actions []Action) string {
	lines := make([]string, len(actions))
	for i, a := range actions {
		lines[i] = a.String()
	}
	return strings.Join(lines, "\n")
}
