package consumer

import (
	"maps"
	"slices"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// retries is what health knows of the fetches that sarama tries again. Some it
// does not report: if the broker responds that it does not lead the partition (any
// more, or yet), sarama asks who does, forever and without an error. But it asks
// for the pause before each retry, and then for the leader.
type retries struct {
	retried, explained int // since the last look; explained: with an error that names the partition
	lastRetry          time.Time
	leastPause         time.Duration // 0: not known yet
}

// retry takes note of the pause before a retry of a partition that failed n times in a row.
func (h *health) retry(n int, pause time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastRetry = time.Now()
	if h.leastPause == 0 || pause < h.leastPause {
		h.leastPause = pause
	}
	if n > 1 { // leaders move, and the next one is found at once
		h.retried++
		wait.Wake(h.kick)
	}
}

// asked takes note that sarama asked for a partition's leader. It does so before each
// retry, and after each fetch that succeeded.
func (h *health) asked(at place) {
	if !h.failing.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f, ok := h.open[fetching][at]
	if !ok {
		return
	}
	now := time.Now()
	if !f.asked.IsZero() && (now.Sub(f.asked) < h.leastPause || h.lastRetry.Before(f.asked)) {
		h.healed(fetching, at) // no retry can have come between the two
		return
	}
	f.asked = now
}

// A partition whose fetch fails is asked about again after askAgain if sarama says nothing,
// and after unheard if it does not even try again.
const (
	askAgain = 5 * time.Second
	unheard  = 10 * time.Second
)

// askBroker asks about fetches that fail and of which sarama does not say so, and
// about those of which nothing was heard for long.
func (h *health) askBroker() {
	claims := h.claims()
	h.mu.Lock()
	silent := h.retried > h.explained
	h.retried, h.explained = 0, 0
	quiet := time.Since(h.lastRetry) > unheard
	probe := h.probe
	var ask []place
	for at, paused := range claims {
		f, fails := h.open[fetching][at]
		switch {
		case paused:
		case silent && (!fails || time.Since(f.last) > askAgain),
			quiet && fails && time.Since(f.last) > unheard:
			ask = append(ask, at)
		}
	}
	h.mu.Unlock()
	if len(ask) == 0 || probe == nil {
		return
	}
	slices.SortFunc(ask, byPlace)
	responses := probe(ask)
	for _, at := range slices.SortedFunc(maps.Keys(responses), byPlace) {
		if err := responses[at]; err != nil {
			h.failed(fetching, at, failure{err: err})
		} else {
			h.works(fetching, at)
		}
	}
}
