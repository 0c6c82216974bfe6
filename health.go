package ackpolicy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"time"
)

// Health says whether a Subscriber works, and what is wrong if not.
type Health struct {
	// Live is false if only a restart of the process helps: a subscription has ended, and
	// nobody closed it.
	Live bool `json:"live"`
	// Ready is false if records wait that should not: Kafka cannot be reached, the
	// membership is lost, or a partition makes no progress.
	Ready    bool      `json:"ready"`
	Problems []Problem `json:"problems,omitempty"` // including those that leave Ready true
}

// Problem is something that the person on call should know.
type Problem struct {
	Code      ProblemCode `json:"code"`
	Text      string      `json:"text"`      // what is wrong, in a sentence
	NotReady  bool        `json:"not_ready"` // whether it makes the Subscriber not ready
	Topic     string      `json:"topic,omitempty"`
	Partition int32       `json:"partition"` // -1 if it is not about one partition
	Offset    int64       `json:"offset"`    // of the record that it is about; -1 if there is none
	Attempt   int         `json:"attempt,omitempty"`
	Handler   string      `json:"handler,omitempty"`
	Since     time.Time   `json:"since"`
	Err       string      `json:"err,omitempty"`
}

// ProblemCode is a kind of problem, for programs.
type ProblemCode string

// The kinds of problem.
const (
	ProblemEnded        ProblemCode = "ended"         // a subscription has ended by itself
	ProblemNotConsuming ProblemCode = "not_consuming" // closed, not subscribed, or without an assignment
	ProblemKafka        ProblemCode = "kafka"         // connecting, fetching or committing fails
	ProblemSlowHandler  ProblemCode = "slow_handler"  // runs for longer than HandlerSlow
	ProblemNoProgress   ProblemCode = "no_progress"   // records wait, and none is settled
	ProblemBlocked      ProblemCode = "blocked"       // MaxUncommitted is reached, and nothing is settled
	ProblemUndecodable  ProblemCode = "undecodable"   // a batch of records cannot be decoded
	ProblemLetter       ProblemCode = "letter"        // a dead letter is not stored
	ProblemPending      ProblemCode = "pending"       // a handler returned without settling its record
	ProblemMixedGroup   ProblemCode = "mixed_group"   // with Transactions: a member of the group has none
)

const (
	// sickAfter is how long something that may pass, such as a rebalance, is not a problem.
	sickAfter = 10 * time.Second
	// blockedAfter is how long nothing must be settled at MaxUncommitted while no handler has a
	// record, as for Hooks.Blocked.
	blockedAfter = 2 * time.Second
	// leastStill is the least time that a partition may settle nothing although records wait.
	leastStill = time.Minute
)

// Health returns what is wrong now. It costs as much as State. A deliberate Pause, a record
// that waits for its next delivery while others are settled, one that waits as its producer
// asked, and a handler that has run for less than HandlerSlow are not problems.
func (s *Subscriber) Health() Health {
	return s.State().health(s.config.HandlerSlow, s.lost())
}

// lost returns the topics of subscriptions that ended without Close, and since when.
func (s *Subscriber) lost() map[string]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.ends)
}

func (st State) health(slow time.Duration, lost map[string]time.Time) Health {
	h := Health{Live: true, Ready: true}
	add := func(p Problem) {
		h.Problems = append(h.Problems, p)
		h.Ready = h.Ready && !p.NotReady
	}
	for topic, since := range lost {
		h.Live = false
		add(Problem{Code: ProblemEnded, NotReady: true, Topic: topic, Partition: -1, Offset: -1, Since: since,
			Text: "the subscription has ended, though nobody closed it: another process took over its static member id, or see the log"})
	}
	if len(st.Subscriptions) == 0 && len(lost) == 0 {
		text := "nothing is subscribed to yet"
		if st.Closing {
			text = "the subscriber is closed"
		}
		add(Problem{Code: ProblemNotConsuming, Text: text, NotReady: true, Partition: -1, Offset: -1, Since: st.Time})
	}
	for _, sub := range st.Subscriptions {
		sub.problems(st.Time, slow, add)
	}
	return h
}

func (sub *SubscriptionState) problems(now time.Time, slow time.Duration, add func(Problem)) {
	for _, f := range sub.Failing {
		p := Problem{Code: ProblemKafka, Text: f.Text, NotReady: now.Sub(f.Since) > sickAfter, Topic: sub.Topic, Partition: -1, Offset: -1, Since: f.Since}
		if len(f.Partitions) == 1 {
			p.Partition = f.Partitions[0]
		}
		if f.Err != nil {
			p.Err = textOf(f.Err)
		}
		add(p)
	}
	if !sub.Mixed.IsZero() {
		add(Problem{Code: ProblemMixedGroup, Topic: sub.Topic, Partition: -1, Offset: -1, Since: sub.Mixed,
			Text: "the consumer group has a member without Transactions, or with an older version: output may appear twice"})
	}
	if !sub.Consuming {
		add(Problem{Code: ProblemNotConsuming, Text: "the member has no assignment: the group rebalances, or Kafka is away",
			NotReady: sub.MemberID == "" || now.Sub(sub.Since) > sickAfter, Topic: sub.Topic, Partition: -1, Offset: -1, Since: sub.Since})
	}
	for i := range sub.Partitions {
		sub.Partitions[i].problems(sub, now, slow, add)
	}
}

func (p *PartitionState) problems(sub *SubscriptionState, now time.Time, slow time.Duration, add func(Problem)) {
	about := func(code ProblemCode, r *RecordState, since time.Time, notReady bool, format string, args ...any) {
		problem := Problem{Code: code, Text: fmt.Sprintf(format, args...), NotReady: notReady, Topic: sub.Topic, Partition: p.Partition, Offset: p.Next, Since: since}
		if r != nil {
			problem.Offset, problem.Attempt = r.Offset, r.Attempt
			if problem.Handler = sub.Handler; r.LastErr != nil {
				problem.Err = textOf(r.LastErr)
			}
		}
		add(problem)
	}
	if p.Draining {
		return
	}
	if p.Slow != nil {
		about(ProblemSlowHandler, p.Slow, p.Slow.Since, true, "%d handlers have run for longer than %v; this record's for longest", p.SlowHandlers, slow)
	}
	if p.Undecodable {
		about(ProblemUndecodable, nil, p.Moved, true, "a batch of records that begins at this offset cannot be decoded")
	}
	old := p.Oldest
	if old == nil {
		return
	}
	still := now.Sub(p.Moved)
	switch {
	case p.Held: // with lag, records always wait behind MaxUncommitted
	case p.Blocked && (p.InFlight == 0 && still > blockedAfter || p.Slow == nil && still > max(slow, leastStill)):
		about(ProblemBlocked, old, old.Since, true, "MaxUncommitted is reached behind this record, which is %s", old.Status)
	case p.Slow == nil && p.Queued > 0 && p.InFlight == 0 && still > max(slow, leastStill):
		about(ProblemNoProgress, old, p.Moved, old.Status != RecordDelayed, "%d records wait behind this one, which is %s, and none is settled", p.Queued, old.Status)
	}
	if limit := max(slow, leastStill); now.Sub(old.Since) > limit {
		switch old.Status {
		case RecordRejecting:
			about(ProblemLetter, old, old.Since, false, "this record is rejected, and its dead letter is not stored")
		case RecordPending:
			about(ProblemPending, old, old.Since, false, "the handler of this record returned without settling it")
		}
	}
}

// LivezHandler returns a handler for a Kubernetes liveness probe. It responds with the Health
// as JSON, and status 200 if the Subscriber is live, otherwise 503.
func (s *Subscriber) LivezHandler() http.Handler {
	return s.healthHandler(func(h Health) bool { return h.Live })
}

// ReadyzHandler is LivezHandler for a readiness probe or an alert: see Health.Ready.
func (s *Subscriber) ReadyzHandler() http.Handler {
	return s.healthHandler(func(h Health) bool { return h.Ready })
}

func (s *Subscriber) healthHandler(ok func(Health) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := s.Health()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if !ok(h) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(h) // the probe has gone
	})
}
