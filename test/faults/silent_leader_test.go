package faults_test

import (
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A leader that does not respond to the watchdog delays neither a revocation nor Close: nothing is in flight.
func TestSilentLeaderDelaysNoDrain(t *testing.T) {
	t.Parallel()
	const bound = 9 * time.Second // the question is given up after 10
	testkit.EachProtocol(t, func(t *testing.T, protocol testkit.Option) {
		broker := brokertest.NewFake(t)
		topic, at := testkit.FakeTopicOf(t, broker, 2)
		group := brokertest.Group(t)
		cfg := testkit.Config(group, at, protocol)
		revoked := make(chan ackpolicy.RevokedEvent, 10)
		cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { revoked <- e }
		s := testkit.NewConsumer(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
		seam.LookEvery(s.Sub, 100*time.Millisecond)
		s.Start(t)
		_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(1)...)
		testkit.Check(t, err)
		testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, 1, testkit.Patience))

		asked, release := make(chan struct{}, 1000), make(chan struct{})
		var once sync.Once
		awake := func() { once.Do(func() { close(release) }) }
		t.Cleanup(awake)
		hold := func() {
			broker.Kfake().ControlKey(int16(kmsg.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
				asked <- struct{}{}
				broker.Kfake().SleepControl(func() { <-release })
				return nil, nil, false
			})
		}
		hold()
		testkit.Await(t, "a question", asked)
		second := testkit.Consume(t, testkit.Config(group, at, protocol), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
		began := time.Now()
		if e := testkit.Await(t, "the revocation", revoked); e.Err != nil || time.Since(began) > bound {
			t.Errorf("revoked after %v: %+v", time.Since(began), e)
		}
		began = time.Now()
		s.Stop()
		if took := time.Since(began); took > bound {
			t.Errorf("Close took %v", took)
		}
		awake()
		second.Stop()
	})
}
