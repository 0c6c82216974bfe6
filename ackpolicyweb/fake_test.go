package ackpolicyweb_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
)

// fake is a Subscriber that says what a test wants it to.
type fake struct {
	mu      sync.Mutex
	state   ackpolicy.State
	health  ackpolicy.Health
	records map[int32][]ackpolicy.RecordState
	acted   []string
	err     error
}

func (f *fake) State() ackpolicy.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.state // a snapshot: what is set later must not change it
	st.Subscriptions = slices.Clone(st.Subscriptions)
	for i := range st.Subscriptions {
		st.Subscriptions[i].Partitions = slices.Clone(st.Subscriptions[i].Partitions)
	}
	return st
}

func (f *fake) Health() ackpolicy.Health {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.health
}

func (f *fake) Window(_ string, p int32, most int) ([]ackpolicy.RecordState, []ackpolicy.Section, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.records[p]
	return r[:min(most, len(r))], nil, true
}

func (f *fake) did(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acted = append(f.acted, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fake) actions() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.acted
}

func (f *fake) Pause(by, topic string, p ...int32) error {
	return f.did("%s pause %s %v", by, topic, p)
}
func (f *fake) Resume(by, topic string, p ...int32) error {
	return f.did("%s resume %s %v", by, topic, p)
}
func (f *fake) Retry(by, topic string, p int32, offset int64) error {
	return f.did("%s retry %s/%d@%d", by, topic, p, offset)
}
func (f *fake) Reject(by, topic string, p int32, offset int64, reason string) error {
	return f.did("%s reject %s/%d@%d: %s", by, topic, p, offset, reason)
}

func (f *fake) SetLimits(by string, l ackpolicy.Limits) error {
	return f.did("%s limits %d in flight, %d deliveries, %v per second", by, l.MaxInFlight, l.MaxDeliveries, l.MaxPerSecond)
}

// set changes what the fake says.
func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// newFake has a topic with so many partitions, all of whose records are settled.
func newFake(topic string, partitions int) *fake {
	now := time.Now()
	sub := ackpolicy.SubscriptionState{
		Topic: topic, Handler: "charge", MemberID: "member-1", Generation: 4, Consuming: true, Since: now.Add(-time.Hour),
		MaxBufferedBytes: 64 << 20, MaxInFlight: 64, MaxUncommitted: 100_000,
	}
	for p := range partitions {
		sub.Partitions = append(sub.Partitions, ackpolicy.PartitionState{
			Partition: int32(p), Since: now.Add(-time.Hour), Watermark: 1000, Committed: 1000, Next: 1000, HighWatermark: 1000, LedgerRoom: 4096,
		})
	}
	return &fake{
		state: ackpolicy.State{
			Time: now, ConsumerGroup: "billing", Ordering: ackpolicy.OrderByKey, Guarantees: "at least once; order per key",
			Subscriptions: []ackpolicy.SubscriptionState{sub},
		},
		records: map[int32][]ackpolicy.RecordState{},
	}
}

// hold gives a partition records that are not settled.
func (f *fake) hold(partition int32, records ...ackpolicy.RecordState) {
	f.set(func(f *fake) {
		p := &f.state.Subscriptions[0].Partitions[partition]
		p.Queued, p.InFlight, p.Nacked, p.Pending, p.Letters = 0, 0, 0, 0, 0
		for _, r := range records {
			switch r.Status {
			case ackpolicy.RecordQueued:
				p.Queued++
			case ackpolicy.RecordInFlight:
				p.InFlight++
			case ackpolicy.RecordParked, ackpolicy.RecordDue:
				p.Nacked++
			case ackpolicy.RecordPending:
				p.Pending++
			case ackpolicy.RecordRejecting:
				p.Letters++
			}
		}
		p.Unsettled = len(records)
		p.Oldest = nil
		if len(records) > 0 {
			p.Oldest = &records[0]
			p.Watermark, p.Committed = records[0].Offset, records[0].Offset
			p.Next = max(p.Next, records[len(records)-1].Offset+1)
		}
		p.HighWatermark = max(p.HighWatermark, p.Next)
		p.WorkLag = int64(p.Unsettled) + p.HighWatermark - p.Next
		p.CommittedLag = p.HighWatermark - p.Committed
		f.records[partition] = records
	})
}

// poison is a record that was nacked so many times.
func poison(offset int64, attempts int, text string) ackpolicy.RecordState {
	now := time.Now()
	r := ackpolicy.RecordState{
		Offset: offset, Key: []byte("ada"), Status: ackpolicy.RecordParked, Since: now.Add(-2 * time.Second), Attempt: attempts, NextDelivery: now.Add(20 * time.Second),
	}
	for i := max(1, attempts-3); i <= attempts; i++ {
		end := now.Add(time.Duration(i-attempts)*10*time.Second - 2*time.Second)
		r.Tries = append(r.Tries, ackpolicy.Try{Attempt: i, Began: end.Add(-time.Second), Ended: end, Err: errors.New(text)})
	}
	r.LastErr = errors.New(text)
	return r
}

func inFlight(offset int64, ago time.Duration) ackpolicy.RecordState {
	return ackpolicy.RecordState{Offset: offset, Key: []byte("bob"), Status: ackpolicy.RecordInFlight, Since: time.Now().Add(-ago), Attempt: 1}
}

// get returns a page.
func get(t *testing.T, h http.Handler, target string) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("GET %s: %d %s", target, w.Code, w.Body)
	}
	return w.Body.String()
}

// post sends a form as the page does.
func post(h http.Handler, form url.Values, header map[string]string) (int, string) {
	r := httptest.NewRequest(http.MethodPost, "http://example.com/ackpolicy/act", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body, _ := io.ReadAll(w.Body)
	return w.Code, string(body)
}

// pageOf is a page of one Subscriber.
func pageOf(f *fake, change ...func(*ackpolicyweb.Options)) *ackpolicyweb.Handler {
	o := ackpolicyweb.Options{Subscribers: []ackpolicyweb.Subscriber{f}, Refresh: 10 * time.Millisecond}
	for _, c := range change {
		c(&o)
	}
	return ackpolicyweb.New(o)
}

func acting(o *ackpolicyweb.Options) { o.AllowActions = func(*http.Request) string { return "ada" } }
