package consumer

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// symptom is one way in which a subscription notices that Kafka does not work.
type symptom int

// In the order of their reports: a line names the first, and then the others.
const (
	connecting symptom = iota
	fetching
	opening // without a group
	committing
	refused
	unconfirmed
	blocked
	rereading
	symptoms // the number of symptoms
)

var kinds = [symptoms]struct {
	name, text string
	quiet      time.Duration // it is reported once it has lasted this long
	once       bool          // it is an event, not a state
}{
	connecting: {name: "connecting", text: "No connection to Kafka, retrying"},
	fetching:   {name: "fetching", text: "Cannot fetch from Kafka, retrying"},
	opening:    {name: "opening", text: "Cannot start reading a partition, retrying"},
	// Moving a coordinator takes a second or two.
	committing:  {name: "committing", text: "Commits keep failing, retrying", quiet: 5 * time.Second},
	refused:     {name: "commits refused", text: "Commit refused: the group has continued without this member", once: true},
	unconfirmed: {name: "last commits not confirmed", text: "Partition released, but its last commit is not confirmed: the next owner may deliver records again", once: true},
	blocked:     {name: "paused", text: "Partition paused: MaxUncommitted is reached because commits fail", once: true},
	rereading:   {name: "reading again", text: "Cannot read back a record that is due, retrying", quiet: time.Second},
}

const (
	// gather is how long a first failure waits for those of other partitions, to share a line with them.
	gather = 200 * time.Millisecond
	// examine is the interval at which a failing subscription is examined.
	examine = time.Second
	// recovered is how long everything must have worked for the outage to be over. It is three
	// times as long each time another one follows within recent, so that what comes and goes
	// is one outage.
	recovered     = 5 * time.Second
	mostRecovered = time.Minute
	recent        = 10 * time.Minute
)

// failure is the last failure of a symptom at a partition.
type failure struct {
	text   string // "" means the text of the symptom
	err    error
	fields watermill.LogFields
	since  time.Time // of the first failure
	last   time.Time
	asked  time.Time // see health.asked
}

// health collects what fails between a subscription and Kafka. An outage shows at each
// partition, in the commits and in the membership. All of it together has a few log lines, and
// one when it is over.
type health struct {
	logger  watermill.LoggerAdapter
	several bool                  // topics: the lines name them
	claims  func() map[place]bool // the partitions that are consumed; true: paused
	closing func() bool
	explain func(error) error // adds which setting to look at

	kick, stop, done chan struct{}

	failing atomic.Bool // there is an outage

	mu        sync.Mutex
	outage    outage.Outage
	report    outage.Report
	due       bool      // a line
	last      time.Time // when something last failed
	ended     time.Time // when the last reported outage ended
	recovered time.Duration
	consuming bool                                 // a session is under way
	changed   time.Time                            // when consuming last changed
	probe     func(places []place) map[place]error // asks the brokers whether they can be fetched
	open      [symptoms]map[place]*failure
	had       [symptoms]map[place]struct{} // the partitions concerned since the outage began
	reported  [symptoms]bool
	notes     []*noted
	retries
}

func newHealth(logger watermill.LoggerAdapter, several bool, closing func() bool, claims func() map[place]bool) *health {
	h := &health{
		logger: logger, several: several, closing: closing, claims: claims, explain: func(err error) error { return err },
		changed: time.Now(),
		kick:    make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	h.reset()
	return h
}

// reset clears everything after an outage.
func (h *health) reset() {
	for k := range symptoms {
		h.open[k], h.had[k], h.reported[k] = map[place]*failure{}, map[place]struct{}{}, false
	}
	h.due = false
	h.failing.Store(false)
}

// failed records a failure. It may be called from any goroutine, and logs at debug level only.
func (h *health) failed(k symptom, at place, f failure) {
	now := time.Now()
	h.mu.Lock()
	if !h.failing.Load() {
		h.begin(now)
	}
	f.since, f.last = now, now
	if before, ok := h.open[k][at]; ok {
		f.since = before.since
	}
	h.open[k][at], h.had[k][at] = &f, struct{}{}
	h.last = now
	if k == fetching {
		h.explained++
	}
	report, due := h.outage.Failed()
	h.report, h.due = report, h.due || due
	h.mu.Unlock()
	wait.Wake(h.kick)
	h.logger.Debug(f.textOf(k), h.fieldsOf(&f, at).Add(watermill.LogFields{"err": f.err.Error()}))
}

func (h *health) begin(now time.Time) {
	h.failing.Store(true)
	if h.ended.IsZero() || now.Sub(h.ended) > recent {
		h.recovered = recovered
	} else {
		h.recovered = min(3*h.recovered, mostRecovered)
	}
}

// works ends a symptom at a partition.
func (h *health) works(k symptom, at place) {
	if !h.failing.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.healed(k, at)
}

func (h *health) healed(k symptom, at place) {
	if _, failed := h.open[k][at]; failed {
		delete(h.open[k], at)
		h.last = time.Now()
	}
}

// connected sets the function that asks the brokers.
func (h *health) connected(probe func(places []place) map[place]error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.probe = probe
}

// session records whether a session is under way.
func (h *health) session(consuming bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.consuming != consuming {
		h.consuming, h.changed = consuming, time.Now()
	}
	if consuming {
		h.healed(connecting, everywhere)
	}
}

// consumes reports whether a session is under way, and since when that has been so.
func (h *health) consumes() (consuming bool, since time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.consuming, h.changed
}

// failures returns what fails now at a topic, or at all of them if topic is "".
func (h *health) failures(topic string) (all []Failing) {
	if !h.failing.Load() {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range symptoms {
		if kinds[k].once {
			continue
		}
		var last *failure
		f := Failing{Symptom: kinds[k].name}
		for at, of := range h.open[k] {
			if topic != "" && at.topic != "" && at.topic != topic {
				continue
			}
			if at.partition >= 0 {
				f.Partitions = append(f.Partitions, at.partition)
			}
			if last == nil || of.last.After(last.last) {
				last = of
			}
			if f.Since.IsZero() || of.since.Before(f.Since) {
				f.Since = of.since
			}
		}
		if last == nil {
			continue
		}
		f.Text, f.Err = last.textOf(k), last.err
		slices.Sort(f.Partitions)
		all = append(all, f)
	}
	return all
}

// run writes the lines, until close.
func (h *health) run() {
	defer close(h.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for looking := false; ; {
		select {
		case <-h.kick:
			if !looking {
				looking = true
				timer.Reset(gather)
			}
		case <-timer.C:
			h.tellNotes()
			if looking = h.examine(); looking {
				timer.Reset(examine)
			}
		case <-h.stop:
			h.tellNotes() // notes that have not been written yet
			h.tell()
			return
		}
	}
}

// close ends run and waits for it.
func (h *health) close() {
	close(h.stop)
	<-h.done
}

// examine checks whether what fails still does, and whether to report it. It returns false
// once there is no outage.
func (h *health) examine() bool {
	h.askBroker()
	began := time.Now()
	h.tell()
	claims := h.claims()
	now := time.Now()
	h.mu.Lock()
	if !h.failing.Load() {
		h.mu.Unlock()
		return false
	}
	fails := !h.consuming
	for k, open := range h.open {
		for at, f := range open {
			paused, ours := claims[at]
			switch {
			case f.last.After(began): // not reported yet
			case kinds[k].once && h.reported[k],
				at.partition >= 0 && !ours,
				paused && symptom(k) == fetching:
				delete(open, at)
			}
		}
		fails = fails || len(open) > 0
	}
	if fails {
		h.last = now
	}
	if now.Sub(h.last) < h.recovered {
		h.mu.Unlock()
		return true
	}
	report, _ := h.outage.Over()
	report.For -= now.Sub(h.last)
	var had []string
	for k := range symptoms {
		if h.reported[k] {
			had = append(had, named(k, h.had[k], h.several))
		}
	}
	h.reset()
	if len(had) > 0 {
		h.ended = now
	}
	h.mu.Unlock()
	if len(had) > 0 {
		h.logger.Info("Kafka works again", report.AddTo(watermill.LogFields{"failed": strings.Join(had, ", ")}))
	}
	return false
}
