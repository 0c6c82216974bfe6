package main

import "testing"

func TestPlansAreTheSameForTheSameDelivery(t *testing.T) {
	for _, manual := range []bool{false, true} {
		acts := map[soakAct]int{}
		nackedAgain := 0
		for offset := range int64(10_000) {
			p := newSoakPlan(1, 3, offset, 1, manual)
			if p != newSoakPlan(1, 3, offset, 1, manual) {
				t.Fatalf("two plans for offset %d", offset)
			}
			acts[p.act]++
			if newSoakPlan(1, 3, offset, 2, manual).verdict()&^settledLate == statusNacked {
				nackedAgain++
			}
		}
		chances := policyChances
		if manual {
			chances = manualChances
		}
		for _, c := range chances {
			if n := acts[c.act]; n < c.of*5 { // half of what is to be expected
				t.Errorf("manual %v: act %d in %d of 10,000 plans, wanted about %d", manual, c.act, n, 10*c.of)
			}
		}
		if nackedAgain > 300 {
			t.Errorf("manual %v: %d of 10,000 are nacked a second time", manual, nackedAgain)
		}
	}
	if newSoakPlan(1, 3, 5, 1, false) == newSoakPlan(2, 3, 5, 1, false) {
		t.Error("another seed has the same plan")
	}
}
