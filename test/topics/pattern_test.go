package topics_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A pattern is waited for, takes topics up as they are created, gives up what is deleted, and reads what is created
// again from its beginning, with one member all the time. The topic that stays has each record once.
func TestPattern(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		group, prefix := brokertest.Group(t), brokertest.Topic(t)
		a, b, other := prefix+".a", prefix+".b", prefix+"-other"
		create(t, other)
		fill(t, other, 1)
		var got handled
		cfg := testkit.Config(group, rebalance, soon, testkit.InitialOffset(sarama.OffsetNewest))
		s := testkit.Consume(t, cfg, prefix+".*", func(_ *message.Message, d *ackpolicy.Delivery) error {
			got.add(d)
			return nil
		}, ackpolicy.NackOnError.Middleware)
		sub := s.Sub
		testkit.Eventually(t, "a line that says so", func() bool { return len(testkit.Containing(s.Log.At("error"), "No topic matches")) > 0 })
		if st := sub.State().Subscriptions; len(st) != 1 || st[0].Topic != prefix+".*" || st[0].Consuming || sub.Health().Ready {
			t.Errorf("with no topic: %+v, ready %v", st, sub.Health().Ready)
		}

		create(t, a)
		producer := testkit.StartProducer(t, a, partitions, 100, 5)
		create(t, b)
		fill(t, b, 6)
		stored(t, group, 6, b)
		awaitMembers(t, group, 1)
		var topics []string
		members := map[string]bool{}
		for _, st := range sub.State().Subscriptions {
			topics = append(topics, st.Topic)
			members[st.MemberID] = true
			if len(st.Partitions) != partitions || st.Handler != "handler" {
				t.Errorf("%+v", st)
			}
		}
		if !slices.Equal(topics, []string{a, b}) || len(members) != 1 {
			t.Errorf("the state has the topics %v and the members %v", topics, members)
		}

		remove(t, b)
		testkit.Eventually(t, "the topic leaves", func() bool { return len(sub.State().Subscriptions) == 1 })
		create(t, b)
		fill(t, b, 3)
		testkit.Eventually(t, "the records of the new topic", func() bool { return got.of(b) == 2*(6+3) })
		ends := producer.Finish(t)
		for p, end := range ends {
			testkit.WaitCommitted(t, group, a, int32(p), end)
		}
		awaitMembers(t, group, 1)
		s.Stop()
		got.wantOnce(t, a, ends...)
		if n := got.of(other); n != 0 {
			t.Errorf("%d deliveries of a topic that does not match", n)
		}
		if lines := testkit.Containing(s.Log.At("error"), "topic="+a+" "); len(lines) > 0 {
			t.Errorf("errors of the topic that stayed:\n%s", strings.Join(lines, "\n"))
		}
	})
}

// Letters do not come back: topics that a pattern matches are not read if letters of its topics go there.
func TestPatternLeavesLettersAlone(t *testing.T) {
	t.Parallel()
	named := func(origin string) string { return origin + ".failed" }
	for name, dead := range map[string]ackpolicy.DeadLetterTopic{
		"default": {Create: &sarama.TopicDetail{}},
		"named":   {Create: &sarama.TopicDetail{}, Topic: named},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, prefix := brokertest.Group(t), brokertest.Topic(t)
			a, b := prefix+".a", prefix+".b"
			create(t, a)
			fill(t, a, 1)
			cfg := testkit.Config(group, soon)
			cfg.DeadLetter = dead
			s := testkit.Consume(t, cfg, prefix+".*", testkit.RejectAll, ackpolicy.NackOnError.Middleware)
			stored(t, group, 1, a)
			create(t, b) // that it is found shows that the topic of the letters was looked at
			fill(t, b, 2)
			stored(t, group, 2, b)
			s.Stop()
			letters := a + ".dlq"
			if dead.Topic != nil {
				letters = named(a)
			}
			testkit.Letters(t, letters, 0, 1)
			for _, d := range s.All() {
				if d.Topic() != a && d.Topic() != b {
					t.Errorf("a letter came back: %s", d.Topic())
				}
			}
		})
	}
}

// Without a group, a pattern reads what there is from the configured start, and what is created later from its beginning.
func TestPatternWithoutAGroup(t *testing.T) {
	t.Parallel()
	prefix := brokertest.Topic(t)
	a, b := prefix+".a", prefix+".b"
	create(t, a)
	fill(t, a, 5)
	var got handled
	s := testkit.Consume(t, testkit.Config("", soon, testkit.InitialOffset(sarama.OffsetNewest)), prefix+".*", func(_ *message.Message, d *ackpolicy.Delivery) error {
		got.add(d)
		return nil
	}, ackpolicy.NackOnError.Middleware)
	fill(t, a, 1)
	testkit.Eventually(t, "the record that was written after the start", func() bool { return got.of(a) == 2 })
	create(t, b)
	fill(t, b, 3)
	testkit.Eventually(t, "the records of the new topic", func() bool { return got.of(b) == 6 })
	remove(t, b)
	testkit.Eventually(t, "the topic leaves", func() bool { return len(testkit.Containing(s.Log.At("info"), "no longer read", "topic="+b)) > 0 })
	create(t, b)
	fill(t, b, 3)
	testkit.Eventually(t, "the records of the topic that was created again", func() bool { return got.of(b) == 12 })
	fill(t, a, 1)
	testkit.Eventually(t, "the topic that stayed", func() bool { return got.of(a) == 4 })
	s.Stop()
}

// Without a group too, a pattern that matches nothing is waited for, and the Subscriber is not ready until then.
func TestPatternWithoutAGroupThatMatchesNothing(t *testing.T) {
	t.Parallel()
	topic := brokertest.Topic(t)
	s := testkit.NewService(t)
	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	sub := testkit.NewSubscriber(t, testkit.Config("", soon, testkit.InitialOffset(sarama.OffsetNewest)), s.Log)
	s.Router.AddConsumerHandler("handler", topic+"*", sub, s.Recorded(testkit.Succeed))
	s.Start(t)
	testkit.Eventually(t, "a line that says so", func() bool { return len(testkit.Containing(s.Log.At("error"), "No topic matches")) > 0 })
	if st := sub.State().Subscriptions; len(st) != 1 || st[0].Topic != topic+"*" || st[0].Consuming || sub.Health().Ready {
		t.Errorf("with no topic: %+v, ready %v", st, sub.Health().Ready)
	}
	create(t, topic)
	fill(t, topic, 2)
	s.Wait(t, 2*partitions)
	testkit.Eventually(t, "it is ready", func() bool { return sub.Health().Ready })
	remove(t, topic)
	testkit.Eventually(t, "it is not ready", func() bool { return !sub.Health().Ready })
	s.Stop()
}

// A static member has the same id after a restart, and gets the partitions of a topic that came while it was away.
func TestStaticMemberOfAPattern(t *testing.T) {
	t.Parallel()
	group, prefix := brokertest.Group(t), brokertest.Topic(t)
	a, b := prefix+".a", prefix+".b"
	create(t, a)
	fill(t, a, 3)
	var got handled
	cfg := testkit.Config(group, soon)
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.InstanceId = "pod-1"
	start := func() *testkit.Service {
		return testkit.Consume(t, cfg, prefix+".*", func(_ *message.Message, d *ackpolicy.Delivery) error {
			got.add(d)
			return nil
		}, ackpolicy.NackOnError.Middleware)
	}
	s := start()
	stored(t, group, 3, a)
	s.Stop()
	create(t, b)
	fill(t, b, 3)
	s = start()
	stored(t, group, 3, b)
	awaitMembers(t, group, 1)
	s.Stop()
	got.wantOnce(t, a, 3, 3)
	got.wantOnce(t, b, 3, 3)
}

// Operators and hooks name the topic, not the pattern.
func TestTopicsOfAPatternByName(t *testing.T) {
	t.Parallel()
	group, prefix := brokertest.Group(t), brokertest.Topic(t)
	a, b := prefix+".a", prefix+".b"
	create(t, a, b)
	settled := make(chan ackpolicy.SettledEvent, 100)
	cfg := testkit.Config(group, soon)
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) { settled <- e }
	s := testkit.Consume(t, cfg, prefix+".*", testkit.Succeed, ackpolicy.Manual.Middleware)
	sub := s.Sub
	testkit.Eventually(t, "all partitions", func() bool {
		n := 0
		for _, st := range sub.State().Subscriptions {
			n += len(st.Partitions)
		}
		return n == 2*partitions
	})
	testkit.Check(t, sub.Pause("somebody", b))
	testkit.Produce(t, b, 0, testkit.Numbered(1)...)
	testkit.Produce(t, a, 0, testkit.Numbered(2)...)
	s.Wait(t, 2)
	testkit.Check(t, sub.Retry("somebody", a, 0, 0))
	if d := s.Wait(t, 3); d.Topic() != a || d.Attempt() != 2 {
		t.Errorf("%s of %s was retried", testkit.Name(d), d.Topic())
	}
	testkit.Check(t, sub.Reject("somebody", a, 0, 1, "a test"))
	if e := testkit.Await(t, "the rejection", settled); e.Topic != a || e.Offset != 1 || e.Status != ackpolicy.Rejected {
		t.Errorf("settled: %+v", e)
	}
	if records, _, ok := sub.Window(a, 0, 10); !ok || len(records) == 0 {
		t.Error("the window of the topic is not known")
	}
	for _, st := range sub.State().Subscriptions {
		for _, p := range st.Partitions {
			if p.Held != (st.Topic == b) {
				t.Errorf("%s/%d is paused: %v", st.Topic, p.Partition, p.Held)
			}
		}
	}
	testkit.Check(t, sub.Resume("somebody", b))
	if d := s.Wait(t, 4); d.Topic() != b {
		t.Errorf("after the pause of %s, %s was delivered", b, d.Topic())
	}
	if err := sub.Pause("somebody", prefix); err == nil {
		t.Error("a topic that does not match was paused")
	}
	if lines := testkit.Containing(s.Log.At("info"), "Subscription changed by hand", "topic="+b); len(lines) != 2 {
		t.Errorf("lines of what was done by hand: %v", lines)
	}
	s.Stop()
}
