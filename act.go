package ackpolicy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
)

// ErrNotAssigned is returned by Retry and Reject for a partition that this Subscriber does not have now.
var ErrNotAssigned = consumer.ErrNotAssigned

// ErrByHand is in the reason of a record that Subscriber.Reject has given up.
var ErrByHand = errors.New("ackpolicy: rejected by hand")

// Pause stops fetching the topic's partitions and handing out their records, of all of them if
// none is given. Handlers that run go on, and what they settle is committed; nothing is
// revoked. It holds until Resume, for this Subscriber, also for partitions that it is assigned later. by
// names who asks, for the log and Hooks.Acted.
func (s *Subscriber) Pause(by, topic string, partitions ...int32) error {
	return s.pause(by, topic, true, partitions)
}

// Resume ends a Pause, of all partitions if none is given. A partition that was paused with the
// whole topic goes on only with that.
func (s *Subscriber) Resume(by, topic string, partitions ...int32) error {
	return s.pause(by, topic, false, partitions)
}

func (s *Subscriber) pause(by, topic string, paused bool, partitions []int32) error {
	subs := s.of(topic)
	if len(subs) == 0 {
		return fmt.Errorf("ackpolicy: there is no subscription of topic %s", topic)
	}
	for _, sub := range subs {
		if len(partitions) == 0 {
			sub.running.PauseAll(paused)
		}
		for _, p := range partitions {
			sub.running.Pause(p, paused)
		}
	}
	event := ActedEvent{By: by, Action: ActionResume, Topic: topic, Partition: -1, Offset: -1}
	if paused {
		event.Action = ActionPause
	}
	if len(partitions) == 0 {
		subs[0].acted(event)
	}
	for _, p := range partitions {
		event.Partition = p
		subs[0].acted(event)
	}
	return nil
}

// Retry has a record delivered now that waits for its next delivery, or that its handler left
// without settling it. by names who asks, for the log and Hooks.Acted.
func (s *Subscriber) Retry(by, topic string, partition int32, offset int64) error {
	return s.act(ActedEvent{By: by, Action: ActionRetry, Topic: topic, Partition: partition, Offset: offset},
		func(sub *subscription) error { return sub.running.Retry(partition, offset) })
}

// Reject gives up one record that is not settled, whatever it waits for: it goes to the DeadLetter, and
// what waits behind it goes on. If a handler has it, the record is settled at once, and
// the records of its lane follow when the handler returns. If none had it yet, it is given up when its turn
// comes. by names who asks, and reason says why; both are in the log, in the letter's reason
// and in Hooks.Acted.
func (s *Subscriber) Reject(by, topic string, partition int32, offset int64, reason string) error {
	why := fmt.Errorf("%w, by %s: %s", ErrByHand, by, reason)
	return s.act(ActedEvent{By: by, Action: ActionReject, Topic: topic, Partition: partition, Offset: offset, Reason: reason},
		func(sub *subscription) error { return sub.running.Reject(partition, offset, why) })
}

// Limits may be changed while a Subscriber runs.
type Limits struct {
	// MaxInFlight stands for SubscriberConfig.MaxInFlight, and must not exceed it; 0 leaves it as
	// it is. Handlers that run go on, and new ones begin once fewer do.
	MaxInFlight int
	// MaxDeliveries stands for SubscriberConfig.MaxDeliveries, from the next nack on; 0 leaves it
	// as it is, Unlimited is no limit.
	MaxDeliveries int
}

// SetLimits changes limits of all subscriptions, those that come included, until it is called again. by
// names who asks, for the log and Hooks.Acted.
func (s *Subscriber) SetLimits(by string, l Limits) error {
	if most := s.config.MaxInFlight; l.MaxInFlight < 0 || l.MaxInFlight > most {
		return fmt.Errorf("ackpolicy: MaxInFlight: %d: want 0, to leave it, or 1 to %d, the configured one", l.MaxInFlight, most)
	}
	if l.MaxDeliveries < Unlimited {
		return fmt.Errorf("ackpolicy: MaxDeliveries: %d: want 0, to leave it, a positive number or Unlimited", l.MaxDeliveries)
	}
	s.mu.Lock()
	if l.MaxInFlight > 0 {
		s.maxInFlight = l.MaxInFlight
	}
	s.mu.Unlock()
	if l.MaxDeliveries != 0 {
		s.maxDeliveries.Store(int64(max(0, l.MaxDeliveries)))
	}
	event := ActedEvent{By: by, Action: ActionLimit, Partition: -1, Offset: -1, Limits: l}
	for _, sub := range s.live() {
		if l.MaxInFlight > 0 {
			sub.running.SetMaxInFlight(l.MaxInFlight)
		}
		event.Topic = sub.topic
		sub.acted(event)
	}
	return nil
}

// mostInFlight is MaxInFlight as it is now.
func (s *Subscriber) mostInFlight() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.maxInFlight, s.config.MaxInFlight)
}

// act does something to a record with the subscription that has its partition.
func (s *Subscriber) act(event ActedEvent, do func(*subscription) error) error {
	err := ErrNotAssigned
	for _, sub := range s.of(event.Topic) {
		if err = do(sub); err == nil {
			sub.acted(event)
			return nil
		}
		if !errors.Is(err, ErrNotAssigned) {
			break
		}
	}
	return fmt.Errorf("ackpolicy: cannot %s: topic %s, partition %d: %w", event.Action, event.Topic, event.Partition, err)
}

func (s *Subscriber) of(topic string) []*subscription {
	return slices.DeleteFunc(s.live(), func(sub *subscription) bool { return sub.topic != topic })
}

// acted tells of what somebody had done.
func (s *subscription) acted(e ActedEvent) {
	fields := watermill.LogFields{"by": e.By, "action": string(e.Action)}
	if e.Partition >= 0 {
		fields["kafka_partition"] = e.Partition
	}
	if e.Offset >= 0 {
		fields["kafka_partition_offset"] = e.Offset
	}
	if e.Reason != "" {
		fields["reason"] = e.Reason
	}
	if e.Action == ActionLimit {
		fields["max_in_flight"], fields["max_deliveries"] = e.Limits.MaxInFlight, e.Limits.MaxDeliveries
	}
	s.logger.Info("Somebody acted on the subscription", fields)
	tell(s, "Acted", s.sub.config.Hooks.Acted, e)
}
