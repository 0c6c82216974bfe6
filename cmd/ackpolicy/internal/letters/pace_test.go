package letters

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			rate  float64
			batch int
			took  time.Duration // for 100 letters
		}{{0, 50, 0}, {1, 1, 99 * time.Second}, {0.5, 1, 198 * time.Second}, {100, 25, 750 * time.Millisecond}, {1e6, 50, 50 * time.Microsecond}} {
			p := &pace{rate: test.rate}
			if n := p.batch(50); n != test.batch {
				t.Errorf("%v/s: batches of %d", test.rate, n)
			}
			began := time.Now()
			for range 100 / test.batch {
				testkit.Check(t, p.wait(t.Context(), test.batch))
			}
			if took := time.Since(began); took != test.took {
				t.Errorf("100 letters at %v/s took %v", test.rate, took)
			}
		}
		// What was late is made up for, but not more than a second.
		p := &pace{rate: 10}
		testkit.Check(t, p.wait(t.Context(), 2))
		time.Sleep(time.Minute)
		began := time.Now()
		for range 10 {
			testkit.Check(t, p.wait(t.Context(), 2))
		}
		if took := time.Since(began); took != 800*time.Millisecond {
			t.Errorf("20 letters at 10/s, a second late, took %v", took)
		}
	})
}
