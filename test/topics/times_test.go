package topics_test

import (
	"sync"
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Topics are found, and given up, within the times of docs/topics.md. Metadata are refreshed every 10 minutes, as by default.
func TestTopicsAreFoundInTime(t *testing.T) {
	t.Parallel()
	const rebalancing = 5 * time.Second // on a busy machine
	for name, c := range map[string]struct {
		list   func(first, late string) string
		gone   bool // the late topic exists at first, and is deleted
		within time.Duration
	}{
		"a name in a list":           {list: func(first, late string) string { return first + "," + late }, within: 5 * time.Second},
		"the first one of a pattern": {list: func(_, late string) string { return late + "*" }, within: 5 * time.Second},
		"one of a pattern, deleted":  {list: func(first, late string) string { return first + ",*" + late }, gone: true, within: 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, late := brokertest.Topic(t), brokertest.Topic(t)
			create(t, first)
			if c.gone {
				create(t, late)
			}
			topics := c.list(first, late)
			sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t), asByDefault), testkit.NewLog(t))
			messages, err := sub.Subscribe(t.Context(), topics)
			testkit.Check(t, err)
			var reader sync.WaitGroup
			reader.Go(func() {
				for msg := range messages {
					msg.Ack()
				}
			})
			t.Cleanup(reader.Wait)
			testkit.Eventually(t, "the subscription", func() bool {
				return reads(sub, late) == c.gone && (reads(sub, first) || topics == late+"*" && len(sub.State().Subscriptions) > 0)
			})
			if c.gone {
				remove(t, late)
			} else {
				testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), late, partitions))
			}
			began := time.Now()
			if !testkit.PollFor(c.within+rebalancing, func() bool { return reads(sub, late) != c.gone }) {
				t.Fatalf("not after %v", time.Since(began))
			}
			t.Logf("after %v", time.Since(began))
		})
	}
}

// asByDefault has members that create no topics, and that nobody gives up on a busy machine.
func asByDefault(c *ackpolicy.SubscriberConfig) {
	soon(c)
	c.Kafka.OverwriteSaramaConfig.Metadata.RefreshFrequency = 10 * time.Minute
}

// reads reports whether a Subscriber has the partitions of a topic.
func reads(sub *ackpolicy.Subscriber, topic string) bool {
	for _, st := range sub.State().Subscriptions {
		if st.Topic == topic {
			return len(st.Partitions) == partitions
		}
	}
	return false
}
