package commit

import "time"

// A commit that is refused for a moment is nothing to wake somebody for: a
// coordinator that moves takes a second or two. After lasting it is, and again
// each lastingEvery.
const (
	lasting      = 5 * time.Second
	lastingEvery = 30 * time.Second
)

// Trouble is what is told of an attempt that failed and is made again.
type Trouble struct {
	Attempt int           // 1 after a commit that succeeded
	Failing time.Duration // since the first of these attempts failed
	Lasts   bool          // for long, and this was not told yet, or long ago
}

// streak is a partition's attempts since its last commit.
type streak struct {
	attempts    int
	since, told time.Time
}

func (s *streak) failed(now time.Time) Trouble {
	s.attempts++
	if s.attempts == 1 {
		s.since = now
	}
	t := Trouble{Attempt: s.attempts, Failing: now.Sub(s.since)}
	if t.Failing >= lasting && now.Sub(s.told) >= lastingEvery {
		t.Lasts, s.told = true, now
	}
	return t
}
