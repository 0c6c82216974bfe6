package wait

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	for attempt, want := range map[int]time.Duration{1: 10, 2: 20, 3: 40, 4: 50, 100: 50} {
		if got := Backoff(attempt, 10, 50); got != want {
			t.Errorf("attempt %d: %d, want %d", attempt, got, want)
		}
	}
}

func TestJitter(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 1000 {
		d := Jitter(time.Second)
		if d < time.Second/2 || d > time.Second {
			t.Fatalf("%v", d)
		}
		seen[d] = true
	}
	if len(seen) < 100 {
		t.Errorf("%d different pauses", len(seen))
	}
	if Jitter(0) != 0 {
		t.Error("no pause has jitter")
	}
}

func TestForEndsEarly(t *testing.T) {
	done := make(chan struct{})
	close(done)
	if For(time.Hour, done) || !For(0, nil) {
		t.Error("For returns the wrong end")
	}
}

func TestChanges(t *testing.T) {
	var c Changes
	c.Tell() // nobody waits
	first, same := c.Next(), c.Next()
	select {
	case <-first:
		t.Fatal("closed before the change")
	default:
	}
	c.Tell()
	<-first
	<-same
	select {
	case <-c.Next():
		t.Fatal("the next change is over already")
	default:
	}
}

func TestWake(t *testing.T) {
	c := make(chan struct{}, 1)
	Wake(c)
	Wake(c) // it has a token: this must not wait
	<-c
	if len(c) != 0 {
		t.Error("two tokens")
	}
}
