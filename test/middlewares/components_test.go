package middlewares_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/components/fanin"
	"github.com/ThreeDotsLabs/watermill/components/requeuer"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// picky is a publisher that refuses one payload, each time.
type picky struct {
	refuses string

	mu        sync.Mutex
	published []string
}

func (p *picky) Publish(_ string, messages ...*message.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, msg := range messages {
		if string(msg.Payload) == p.refuses {
			return errors.New("refused")
		}
		p.published = append(p.published, string(msg.Payload))
	}
	return nil
}

func (p *picky) Close() error { return nil }

func (p *picky) want(t *testing.T, want ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.published, want) {
		t.Errorf("published %v, want %v", p.published, want)
	}
}

// rejecting is a configuration whose subscriber rejects what fails.
func rejecting(group string, letters ackpolicy.DeadLetter) ackpolicy.SubscriberConfig {
	return testkit.Config(group, func(c *ackpolicy.SubscriberConfig) {
		c.Policy, c.DeadLetter = new(ackpolicy.RejectOnError), letters
	})
}

// FanIn builds a Router of its own, to which nobody can add a middleware.
func TestSubscriberPolicyInFanIn(t *testing.T) {
	t.Parallel()
	group, letters, log := brokertest.Group(t), &testkit.Flaky{}, testkit.NewLog(t)
	one, two := testkit.NewTopic(t, 1, testkit.Numbered(3)...), testkit.NewTopic(t, 1)
	out := &picky{refuses: "1"}
	f, err := fanin.NewFanIn(testkit.NewSubscriber(t, rejecting(group, letters), log), out, fanin.Config{SourceTopics: []string{one, two}, TargetTopic: "all"}, log)
	testkit.Check(t, err)
	ended := make(chan error, 1)
	go func() { ended <- f.Run(context.Background()) }()
	testkit.WaitCommitted(t, group, one, 0, 3)
	testkit.Check(t, f.Close())
	testkit.Check(t, testkit.Await(t, "the end of Run", ended))
	out.want(t, "0", "2")
	if letters.Sent.Load() != 1 {
		t.Errorf("%d letters", letters.Sent.Load())
	}
}

// So does the Requeuer.
func TestSubscriberPolicyInRequeuer(t *testing.T) {
	t.Parallel()
	group, letters, log := brokertest.Group(t), &testkit.Flaky{}, testkit.NewLog(t)
	topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	out := &picky{refuses: "1"}
	r, err := requeuer.NewRequeuer(requeuer.Config{
		Subscriber: testkit.NewSubscriber(t, rejecting(group, letters), log), SubscribeTopic: topic, Publisher: out,
		GeneratePublishTopic: func(requeuer.GeneratePublishTopicParams) (string, error) { return "again", nil },
	}, log)
	testkit.Check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	testkit.WaitCommitted(t, group, topic, 0, 3)
	cancel()
	testkit.Check(t, testkit.Await(t, "the end of Run", ended))
	out.want(t, "0", "2")
	if letters.Sent.Load() != 1 {
		t.Errorf("%d letters", letters.Sent.Load())
	}
}
