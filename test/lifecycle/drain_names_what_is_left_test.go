package lifecycle_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// What a partition left when DrainTimeout was over is named, whatever it was, and reported to the hook.
func TestReleasedNamesWhatWasLeft(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		policy ackpolicy.Policy
		handle func(trap *snare, d *ackpolicy.Delivery) error
		line   []string
		event  ackpolicy.RevokedEvent // its counts
	}{
		"a handler": {
			ackpolicy.NackOnError,
			func(trap *snare, d *ackpolicy.Delivery) error { trap.hang(); return nil },
			[]string{"Partition released before everything was settled", "1 neither acked nor nacked yet", "handlers_running=1", "first_left_offset=0"},
			ackpolicy.RevokedEvent{Running: 1},
		},
		"a letter": {
			ackpolicy.NackOnError,
			func(_ *snare, d *ackpolicy.Delivery) error { return ackpolicy.ErrReject },
			[]string{"Partition released before everything was settled", "1 rejected, their dead letters not stored", "handlers_running=0", "letters=1", "first_left_offset=0"},
			ackpolicy.RevokedEvent{Letters: 1},
		},
		"pending": {
			ackpolicy.Manual,
			func(_ *snare, d *ackpolicy.Delivery) error { d.Draining(); return nil }, // who asks may settle late
			[]string{"Partition released before everything was settled", "1 pending", "pending=1", "handlers_running=0", "first_left_offset=0"},
			ackpolicy.RevokedEvent{Pending: 1},
		},
		"a handler of a settled record": {
			ackpolicy.AckFirst,
			func(trap *snare, d *ackpolicy.Delivery) error { trap.hang(); return nil },
			[]string{"Partition released before all handlers finished", "do not come again", "handlers_running=1", "first_left_offset=-1"},
			ackpolicy.RevokedEvent{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			trap, dead := newSnare(), &testkit.Flaky{}
			dead.Down.Store(true)
			cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(500*time.Millisecond))
			cfg.DeadLetter = dead
			released := make(chan ackpolicy.RevokedEvent, 1)
			cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released <- e }
			topic, log := testkit.NewTopic(t, 1, testkit.Numbered(1)...), testkit.NewLog(t)
			s := testkit.NewService(t)
			s.Log = log
			router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Second}, log) // it waits for handlers
			testkit.Check(t, err)
			s.Router = router
			router.AddMiddleware(test.policy.Middleware)
			sub := testkit.NewSubscriber(t, cfg, log)
			router.AddConsumerHandler("handler", topic, sub, s.Recorded(func(_ *message.Message, d *ackpolicy.Delivery) error { return test.handle(trap, d) }))
			s.Start(t)
			defer close(trap.free)
			s.Wait(t, 1)
			if test.event.Letters > 0 {
				testkit.Eventually(t, "a letter", func() bool { return dead.Tried.Load() > 0 })
			}
			wantClosed(t, func() { testkit.Check(t, sub.Close()) }, 500*time.Millisecond)
			e := testkit.Await(t, "the event", released)
			if e.Running != test.event.Running || e.Pending != test.event.Pending || e.Nacked != 0 || e.Letters != test.event.Letters || !e.TimedOut {
				t.Errorf("the hook got %+v", e)
			}
			if len(testkit.Containing(log.At("error"), append(test.line, topic)...)) == 0 {
				t.Errorf("not logged: %v", log.At("error"))
			}
		})
	}
}
