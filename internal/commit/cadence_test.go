package commit

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// The more is settled, the sooner a commit comes; never sooner than the pause, nor later than the interval.
func TestCadence(t *testing.T) {
	c := newCadence(time.Second, false)
	c.committed(time.Now())
	for changes, want := range map[uint64]time.Duration{
		1: 200 * time.Millisecond, 2: 100 * time.Millisecond, 10: leastPause, 1000: leastPause, 1 << 40: leastPause,
	} {
		if got := c.wait(changes); got > want || got < want-time.Millisecond {
			t.Errorf("%d changes wait %v, want %v", changes, got, want)
		}
	}
	c.committed(time.Now().Add(-10 * time.Millisecond)) // a slow coordinator
	if got := c.wait(1000); got < 90*time.Millisecond || got > 200*time.Millisecond {
		t.Errorf("after a commit of 10 ms: %v", got)
	}
	c.committed(time.Now().Add(-time.Minute))
	if got := c.wait(1); got > time.Second/share {
		t.Errorf("after a commit of a minute: %v", got)
	}
}

// What is settled is stored long before the interval is over, and nothing is sent while nothing is.
func TestCommitsWhatIsSettledSoon(t *testing.T) {
	b := newBed(t, true, false)
	b.c.Close()
	cfg := b.c.cfg
	cfg.Interval = time.Minute // a fifth is 12 s: 240 changes are stored after 50 ms
	b.c = New(cfg, b)
	b.source(true, 0)
	var commits atomic.Int32
	b.broker.Kfake().ControlKey(int16(commitKey), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.broker.Kfake().KeepControl()
		commits.Add(1)
		return nil, nil, false
	})
	for round := int64(1); round <= 3; round++ {
		began := time.Now()
		b.move(2000*round, uint64(2000*round))
		b.c.Settled()
		until(t, func() bool { return b.storedIs(2000 * round) })
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("stored after %v", took)
		}
	}
	if n := commits.Load(); n != 3 {
		t.Errorf("%d commits", n)
	}
}

// What is settled while a few others wait for their commit brings that forward.
func TestCommitsSoonerWhereMoreIsSettledMeanwhile(t *testing.T) {
	b := newBed(t, true, false)
	b.c.Close()
	cfg := b.c.cfg
	cfg.Interval = time.Minute // a fifth is 12 s
	b.c = New(cfg, b)
	b.source(true, 0)
	b.move(1, 1)
	b.c.Settled()
	time.Sleep(50 * time.Millisecond)
	began := time.Now()
	b.move(2000, 2000)
	b.c.Settled()
	until(t, func() bool { return b.storedIs(2000) })
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stored after %v", took)
	}
}
