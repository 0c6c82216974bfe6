package consumer

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
)

func TestStamp(t *testing.T) {
	for _, at := range []time.Time{{}, time.UnixMilli(0), time.UnixMilli(1_700_000_000_123)} {
		if got := stampOf(at).time(); !got.Equal(at) || got.IsZero() != at.IsZero() {
			t.Errorf("%v is %v", at, got)
		}
	}
}

// tried is a Task that notes what its slot calls.
type tried struct {
	d     *Delivery
	calls []string
}

func (t *tried) Run(<-chan struct{}, *record.Copies) (*partition.Verdict, bool) {
	t.calls = append(t.calls, "Run")
	return nil, true
}
func (t *tried) Gone(error)                             {}
func (t *tried) GiveUp(reason error)                    { t.calls = append(t.calls, "GiveUp: "+reason.Error()) }
func (t *tried) Delivery() *Delivery                    { return t.d }
func (t *tried) Finished()                              {}
func (t *tried) Settled(int64, int, partition.Verdict)  {}
func (t *tried) Cancel()                                {}
func (t *tried) UnderWay() (call string, offering bool) { return "", false }

// A record that may end the process, and that somebody rejects while it waits for its turn, reaches no handler.
func TestRejectOfARecordThatWaitsToBeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Claim{
			base:     newBase(&Config{Logger: watermill.NopLogger{}, Resources: NewResources(1<<20, 0)}),
			part:     partition.New[Task](partition.Config[*sarama.ConsumerMessage]{MaxInFlight: 1}),
			draining: make(chan struct{}),
			source: (&commit.Committer{}).NewSource(commit.SourceConfig{
				Stored: true, Mark: func() partition.Mark { return partition.Mark{Version: 1 << 60} },
			}),
		}
		c.careful.Store(true)
		_, _ = c.part.Push(0, &sarama.ConsumerMessage{}, 1)
		d := &Delivery{claim: c}
		task := &tried{d: d}
		d.Handle = task
		if _, ok := c.part.Take(&d.Delivery); !ok {
			t.Fatal("nothing is handed out")
		}
		c.quarantine.enter(true, nil)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.serveOne(d, &record.Copies{})
		}()
		synctest.Wait()
		if !d.reject(errors.New("by hand")) {
			t.Error("not rejected")
		}
		c.quarantine.leave()
		<-ended
		if !slices.Equal(task.calls, []string{"GiveUp: by hand"}) {
			t.Errorf("its slot called %q", task.calls)
		}
	})
}
