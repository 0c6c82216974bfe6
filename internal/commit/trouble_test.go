package commit

import (
	"slices"
	"testing"
	"time"
)

// Attempts that fail are told once they have for five seconds, then each half minute,
// however many there are; after one that succeeded it all begins anew.
func TestTrouble(t *testing.T) {
	t.Parallel()
	now := time.Now()
	run := func(s *streak, every, long time.Duration) (told []time.Duration) {
		began := now
		for n := 1; now.Sub(began) < long; n++ {
			trouble := s.failed(now)
			if trouble.Attempt != n || trouble.Failing != now.Sub(began) {
				t.Errorf("attempt %d after %v: %+v", n, now.Sub(began), trouble)
			}
			if trouble.Lasts {
				told = append(told, trouble.Failing)
			}
			now = now.Add(every)
		}
		return told
	}
	for _, every := range []time.Duration{20 * time.Millisecond, time.Second} {
		if told := run(&streak{}, every, 5*time.Second); len(told) > 0 {
			t.Errorf("attempts each %v: told after %v", every, told)
		}
		want := []time.Duration{5 * time.Second, 35 * time.Second, 65 * time.Second}
		if told := run(&streak{}, every, 90*time.Second); !slices.Equal(told, want) {
			t.Errorf("attempts each %v: told after %v", every, told)
		}
	}
	// A request without an answer takes longer than all of it.
	if told := run(&streak{}, 40*time.Second, 100*time.Second); !slices.Equal(told, []time.Duration{40 * time.Second, 80 * time.Second}) {
		t.Errorf("slow attempts: told after %v", told)
	}
}
