package partition

import (
	"math/rand/v2"
	"testing"
)

// sharer is a partition that shares a Limit, with its slots.
type sharer struct {
	*Partition[int64, any]
	awake   int // slots that look
	running []*Delivery[int64, any]
	pushed  int64
	ended   bool
}

// A Limit is never exceeded, and no place of it lies idle while a partition has a record for it:
// partitions are paused and end at any time, with places that they were granted.
func TestLimit(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		most := 1 + rnd.IntN(4)
		limit := NewLimit(most)
		var all []*sharer
		var do func(s *sharer, w Work)
		join := func() {
			s := &sharer{Partition: New[any](Config[int64]{Order: Order(rnd.IntN(3)), MaxInFlight: 3, Limit: limit, Key: func(r int64) []byte { return []byte{byte(r % 3)} }})}
			s.OnGrant(func() { do(s, s.Poke()) })
			all = append(all, s)
		}
		do = func(s *sharer, w Work) {
			s.awake += int(w.Wake + w.Spawn)
			w.Granted()
		}
		look := func(s *sharer) {
			s.awake--
			d := &Delivery[int64, any]{}
			w, ok := s.Take(d)
			if ok {
				s.running = append(s.running, d)
			}
			do(s, w)
		}
		finish := func(s *sharer) {
			d, next := s.running[0], &Delivery[int64, any]{}
			s.running = s.running[1:]
			_, ok, w := s.FinishAndTake(d, &Verdict{Status: Acked}, 0, next)
			if ok {
				s.running = append(s.running, next)
			}
			do(s, w)
		}
		join()
		for range 400 {
			s := all[rnd.IntN(len(all))]
			switch op := rnd.IntN(12); {
			case op == 0 && len(all) < 8:
				join()
			case op == 1 && rnd.IntN(4) == 0: // its slots end, also those that were to look
				_, w := s.Stop()
				do(s, w)
				s.Close()
				s.awake, s.ended = 0, true
			case op == 2:
				do(s, s.Pause(rnd.IntN(2) == 0))
			case op < 6:
				w, err := s.Push(s.pushed, s.pushed, 1)
				if err != nil {
					t.Fatal(err)
				}
				s.pushed++
				do(s, w)
			case op < 9 && s.awake > 0:
				look(s)
			case len(s.running) > 0:
				finish(s)
			}
			if rnd.IntN(4) > 0 {
				continue
			}
			for more := true; more; { // all slots that were woken look
				more = false
				for _, s := range all {
					for ; s.awake > 0 && !s.ended; more = true {
						look(s)
					}
				}
			}
			inUse := 0
			for _, s := range all {
				inUse += len(s.running)
			}
			if inUse > most {
				t.Fatalf("seed %d: %d deliveries with a limit of %d", seed, inUse, most)
			}
			for i, s := range all {
				if inUse < most && !s.ended && s.handsOut() && len(s.running) < 3 && s.takeable() > 0 {
					t.Fatalf("seed %d: %d of %d places are in use, and partition %d has a record", seed, inUse, most, i)
				}
			}
		}
	}
}
