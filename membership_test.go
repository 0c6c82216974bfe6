package ackpolicy_test

import (
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// One commit is answered with UNKNOWN_MEMBER_ID while heartbeats succeed: the member joins again, and its partitions go on.
func TestOneCommitIsFenced(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			topic, at := fakeTopicOf(t, broker, 2)
			group := brokertest.Group(t)
			fault := broker.Kfake().Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.UnknownMemberID,
				When: func(request kmsg.Request) bool { // not the start position: the first commit of a record
					return request.(*kmsg.OffsetCommitRequest).Topics[0].Partitions[0].Offset > 0
				},
			})
			s := consume(t, config(group, at, rebalance), topic, func(*message.Message, *ackpolicy.Delivery) error { return nil },
				ackpolicy.NackOnError.Middleware)
			for p := range int32(2) {
				_, err := brokertest.Produce(broker.Addrs(), topic, p, numbered(3)...)
				check(t, err)
				check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, p, 3, patience))
			}
			s.stop()
			if fault.Hits() != 1 {
				t.Errorf("%d commits were fenced", fault.Hits())
			}
		})
	}
}

// A member that has to wait for another one to finish its work says so, and that it has its partitions in the end.
func TestWaitForTheGroupIsTold(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 2, numbered(1)...)
	eager := strategy(sarama.NewBalanceStrategyRange())
	release := make(chan struct{})
	slow := consume(t, config(group, eager), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		return until(msg.Context(), release)
	}, ackpolicy.NackOnError.Middleware)
	slow.journal.wait(t, 1)
	second := consume(t, config(group, eager), topic, func(*message.Message, *ackpolicy.Delivery) error { return nil },
		ackpolicy.NackOnError.Middleware)
	told := func(words ...string) func() bool {
		return func() bool { return len(with(second.log.at("info"), append(words, "consumer_group="+group)...)) == 1 }
	}
	eventually(t, "a line that says what is waited for", told("Waiting for the consumer group", "waiting_for="))
	close(release)
	eventually(t, "a line that says it is over", told("Joined the consumer group", "member_id=", "kafka_partitions="))
}
