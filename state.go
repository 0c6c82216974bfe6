package ackpolicy

import (
	"cmp"
	"slices"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// State is a snapshot of a Subscriber.
type State struct {
	Time          time.Time
	ConsumerGroup string
	Guarantees    string
	Ordering      Ordering
	Closing       bool
	// Subscriptions are those that have not ended, in the order of the calls of Subscribe. One that
	// reads several topics has an element for each.
	Subscriptions []SubscriptionState
}

// SubscriptionState is a snapshot of what a subscription has of one topic.
type SubscriptionState struct {
	Topic      string // the pattern, if no topic matches it
	Handler    string // the last handler that ran under our middleware; "" if none has
	MemberID   string // in the consumer group; "" without one
	Generation int32
	// Consuming reports whether the member has its assignment or, without a group, whether
	// the topic is read. Since is when Consuming last changed.
	Consuming bool
	Since     time.Time
	Failing   []Failure
	// Mixed is since when the consumer group of a Subscriber with Transactions has a member
	// without. It is zero if it has none.
	Mixed time.Time
	// BufferedBytes is the size of unsettled records. MaxBufferedBytes limits that of all
	// subscriptions together.
	BufferedBytes, MaxBufferedBytes int64
	// The current limits, per partition and per record; see SetLimits. MaxUncommitted may be
	// Unlimited, and MaxDeliveries 0, which means no limit.
	MaxInFlight, MaxUncommitted, MaxDeliveries int
	MaxPerSecond                               float64 // deliveries; 0 means no limit
	// DeadLetter reports whether rejected records have a destination: that of the Subscriber,
	// or one of a Middleware that has handled a message.
	DeadLetter bool
	Partitions []PartitionState // the assigned ones, in order
}

// Failure is something that currently fails between a subscription and Kafka.
type Failure struct {
	Symptom    string  // "connecting", "fetching", "opening", "committing" or "reading again"
	Text       string  // the symptom as a sentence
	Partitions []int32 // empty if it is not about partitions
	Since      time.Time
	Err        error // the last one
}

// PartitionState is a snapshot of an assigned partition. An unknown offset is -1.
type PartitionState struct {
	Partition int32
	Since     time.Time // when it was assigned

	Watermark     int64 // every record below it is settled
	Committed     int64 // the offset that Kafka has stored
	Next          int64 // the offset after the last record that was fetched
	HighWatermark int64 // the end of the log at the last fetch; 0 before the first one
	// CommittedLag is the distance of Committed from HighWatermark, as Kafka's tools count
	// it. WorkLag is an upper bound of the number of unsettled records: those in memory, and
	// those that have not been fetched.
	CommittedLag, WorkLag int64

	Oldest *RecordState // the record that holds Watermark; nil if everything fetched is settled
	Moved  time.Time    // when a record was last settled, or the assignment began
	// Slow is the record whose handler has run longest, if longer than
	// SubscriberConfig.HandlerSlow; otherwise nil. SlowHandlers counts such handlers.
	Slow         *RecordState
	SlowHandlers int

	InFlight  int // deliveries whose handlers have not returned
	Queued    int // records that were not delivered yet by this member
	Delayed   int // records that wait for the time of their first delivery
	Nacked    int // records that wait for their next delivery
	Pending   int // records whose handlers returned without settling them
	Letters   int // rejected records whose dead letters are not stored
	Unsettled int // all of these, each record once

	Uncommitted int // records that count for MaxUncommitted
	Bytes       int64
	// LedgerBytes is the size of the ledger beside the committed offset, which LedgerRoom
	// limits. Unmarked counts settled records that did not fit: a restart repeats them.
	LedgerBytes, LedgerRoom, Unmarked int
	CommitErr                         error    // why the last commit is not confirmed; nil if it is
	Paused                            []string // why nothing is fetched; empty if it is not paused
	Held                              bool     // paused by Subscriber.Pause
	Blocked                           bool     // MaxUncommitted holds records back
	Undecodable                       bool     // a batch cannot be decoded
	Draining                          bool
}

// RecordState describes a record that is not settled.
type RecordState struct {
	Offset int64
	Key    []byte // the first 256 bytes; nil if it has none, or was pushed out of memory
	Status RecordStatus
	// Since is when the record got its Status, to a quarter of a second.
	Since   time.Time
	Attempt int // deliveries so far
	// NextDelivery is when a nacked or delayed record is delivered; zero if it is neither.
	NextDelivery time.Time
	LastErr      error // why the last delivery did not settle it; nil if there was none, or no error
	Tries        []Try // deliveries that did not settle it: the first one and the last three, oldest first
	Rejected     error // set by Subscriber.Reject: why it is given up when its turn comes
}

// Try is a delivery that did not settle its record.
type Try struct {
	Attempt      int
	Began, Ended time.Time // to a quarter of a second; Began is zero if it is not known
	Err          error
}

// RecordStatus is what an unsettled record is doing.
type RecordStatus uint8

const (
	RecordQueued     RecordStatus = iota // waits for a slot, or for an earlier record of its lane
	RecordUnverified                     // probably settled by an earlier owner; not verified yet
	RecordInFlight                       // with its handler
	RecordNacking                        // nacked, its handler has not returned
	RecordPending                        // its handler returned without settling it
	RecordParked                         // nacked, waits until NextDelivery
	RecordDue                            // nacked or delayed until now, waits for a slot
	RecordRejecting                      // rejected, its dead letter is not stored yet
	RecordConfirming                     // acked under ConfirmFirst, its commit is not confirmed yet
	RecordDelayed                        // was never delivered, waits until NextDelivery
	RecordSettled                        // settled, its handler has not returned
)

var recordStatusNames = [...]string{
	"queued", "unverified", "in flight", "nacking", "pending", "parked", "due", "rejecting", "confirming", "delayed", "settled",
}

// String returns the status in lower case.
func (s RecordStatus) String() string {
	if int(s) < len(recordStatusNames) {
		return recordStatusNames[s]
	}
	return "RecordStatus?"
}

// State returns a snapshot of all subscriptions. It holds no lock longer than the settlement
// of a record does. It may be called at any time, also after Close.
func (s *Subscriber) State() State {
	st := State{Time: time.Now(), ConsumerGroup: s.config.Kafka.ConsumerGroup, Guarantees: s.Guarantees(), Ordering: s.config.Ordering, Closing: s.closing.Err() != nil}
	for _, sub := range s.live() {
		st.Subscriptions = append(st.Subscriptions, sub.states()...)
	}
	return st
}

// live returns the subscriptions that have not ended.
func (s *Subscriber) live() []*subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.subscriptions)
}

func (s *subscription) states() (all []SubscriptionState) {
	for _, of := range s.running.State() {
		all = append(all, s.state(&of))
	}
	return all
}

func (s *subscription) state(of *consumer.State) SubscriptionState {
	c := &s.sub.config
	st := SubscriptionState{
		Topic: of.Topic, Handler: s.handlerName(), MemberID: of.Member, Generation: of.Generation, Consuming: of.Consuming, Since: of.Since, Mixed: of.Mixed,
		BufferedBytes: of.Bytes, MaxBufferedBytes: c.MaxBufferedBytes, MaxInFlight: cmp.Or(s.inBatches, s.sub.mostInFlight()), MaxDeliveries: s.maxDeliveries(s.handlerSettings()), MaxUncommitted: c.MaxUncommitted, MaxPerSecond: s.sub.mostPerSecond(),
		DeadLetter: len(s.destinations()) > 0,
	}
	for _, f := range of.Failing {
		st.Failing = append(st.Failing, Failure{f.Symptom, f.Text, f.Partitions, f.Since, f.Err})
	}
	clock := newWallClock()
	for _, p := range of.Claims {
		st.Partitions = append(st.Partitions, clock.partition(&p))
	}
	return st
}

// Window returns at most so many unsettled records of a partition, the oldest first, and the
// sections of 64 records that contain them, for programs that draw the window. ok is false
// if the partition is not assigned. The result is not of one moment.
func (s *Subscriber) Window(topic string, partition int32, most int) (records []RecordState, sections []Section, ok bool) {
	for _, sub := range s.live() {
		held, parts, assigned := sub.running.Window(topic, partition, most)
		if !assigned {
			continue
		}
		clock := newWallClock()
		for _, h := range held {
			records = append(records, *clock.record(&h))
		}
		for _, p := range parts {
			sections = append(sections, sectionOf(p))
		}
		return records, sections, true
	}
	return nil, nil, false
}

// Section is a part of a partition's window: at most 64 records, from From (inclusive) to To
// (exclusive).
type Section struct {
	From, To                                            int64
	Settled, InFlight, Queued, Nacked, Pending, Letters int // Queued includes delayed records
}

func sectionOf(p partition.Section) Section {
	n := countsOf(&p.Counts)
	return Section{
		From: p.From, To: p.To, Settled: p.Records - n.Unsettled,
		InFlight: n.InFlight, Queued: n.Queued + n.Delayed, Nacked: n.Nacked, Pending: n.Pending, Letters: n.Letters,
	}
}

// countsOf sums up the states of the records of a window. Its InFlight counts records.
func countsOf(counts *partition.Counts) (n PartitionState) {
	n.Queued = counts[partition.Queued] + counts[partition.Unverified]
	n.InFlight = counts[partition.InFlight] + counts[partition.Confirming] + counts[partition.NackedBusy]
	n.Nacked = counts[partition.Parked] + counts[partition.Due]
	n.Delayed = counts[partition.Delayed]
	n.Pending, n.Letters = counts[partition.Pended], counts[partition.Rejecting]
	n.Unsettled = n.Queued + n.InFlight + n.Delayed + n.Nacked + n.Pending + n.Letters
	return n
}

// wallClock converts times of the subscription's clock to wall clock times.
type wallClock struct {
	now  time.Time
	mono int64
}

func newWallClock() wallClock { return wallClock{time.Now(), consumer.Now()} }

func (c wallClock) at(mono int64) time.Time {
	if mono == 0 {
		return time.Time{}
	}
	return c.now.Add(time.Duration(mono - c.mono))
}

func (c wallClock) partition(p *consumer.ClaimState) PartitionState {
	st := countsOf(&p.Counts)
	st.Partition, st.Since = p.Partition, p.Since
	st.Watermark, st.Committed, st.Next, st.HighWatermark = p.Watermark, p.Committed, p.Next, p.LogEnd
	if st.Committed >= 0 {
		st.CommittedLag = max(0, st.HighWatermark-st.Committed)
	}
	st.WorkLag = int64(st.Unsettled) + max(0, st.HighWatermark-st.Next)
	st.InFlight, st.Uncommitted, st.Bytes = p.Running, p.Uncommitted, p.Bytes
	st.LedgerBytes, st.LedgerRoom, st.Unmarked, st.CommitErr = p.Metadata, p.Room, p.Unmarked, p.CommitErr
	st.Undecodable = p.Undecodable
	st.Paused, st.Held, st.Blocked, st.Draining = p.Paused, p.Overview.Paused, p.Overview.Blocked, p.Draining
	if p.Oldest != nil {
		st.Oldest = c.record(p.Oldest)
	}
	if st.Moved, st.SlowHandlers = c.at(p.Moved), p.SlowHandlers; p.Slow != nil {
		st.Slow = c.record(p.Slow)
	}
	return st
}

func (c wallClock) record(h *partition.RecordState) *RecordState {
	r := &RecordState{
		Offset: h.Offset, Key: h.Key, Status: RecordStatus(h.State), Since: c.at(h.Since), Attempt: h.Attempt,
		NextDelivery: c.at(h.DueAt), Rejected: h.Rejected,
	}
	for _, t := range h.Tries {
		r.Tries = append(r.Tries, Try{t.Attempt, c.at(t.Began), c.at(t.Ended), t.Err})
		r.LastErr = t.Err
	}
	return r
}
