package ackpolicy

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
)

// ErrNotAssigned is returned by Retry and Reject if the partition is not assigned to this
// Subscriber.
var ErrNotAssigned = consumer.ErrNotAssigned

// ErrByHand is wrapped by the reason of a record that Subscriber.Reject has given up.
var ErrByHand = consumer.ErrByHand

// Pause stops fetching from partitions of a topic and handing out their records; from all
// partitions if none is given. Running handlers continue, what they settle is committed, and
// nothing is revoked. It lasts until Resume, for this Subscriber, and applies to partitions
// that are assigned later. by names the caller, for the log and Hooks.Acted.
func (s *Subscriber) Pause(by, topic string, partitions ...int32) error {
	return s.pause(by, topic, true, partitions)
}

// Resume ends a Pause; of all partitions if none is given. A partition that was paused with
// the whole topic is only resumed with the whole topic.
func (s *Subscriber) Resume(by, topic string, partitions ...int32) error {
	return s.pause(by, topic, false, partitions)
}

func (s *Subscriber) pause(by, topic string, paused bool, partitions []int32) error {
	subs := s.of(topic)
	if len(subs) == 0 {
		return fmt.Errorf("ackpolicy: there is no subscription of topic %s", topic)
	}
	if len(partitions) == 0 {
		partitions = []int32{-1} // all
	}
	for _, sub := range subs {
		for _, p := range partitions {
			sub.running.Pause(topic, p, paused)
		}
	}
	event := ActedEvent{By: by, Action: ActionResume, Topic: topic, Offset: -1}
	if paused {
		event.Action = ActionPause
	}
	for _, p := range partitions {
		event.Partition = p
		subs[0].actedOn(event)
	}
	return nil
}

// Retry delivers a record now that waits for its next delivery, or whose handler returned
// without settling it. by names the caller, for the log and Hooks.Acted.
func (s *Subscriber) Retry(by, topic string, partition int32, offset int64) error {
	return s.act(ActedEvent{By: by, Action: ActionRetry, Topic: topic, Partition: partition, Offset: offset},
		func(sub *subscription) error { return sub.running.Retry(topic, partition, offset) })
}

// Reject gives up one unsettled record, whatever it waits for: it goes to the DeadLetter, and
// the records that wait for it continue. If a handler has the record, it is settled at once,
// and the records that wait for it continue when the handler returns. If no handler had it
// yet, it is given up when its turn comes, also by the next owner of the partition, if the
// record is in memory and the commit has room. by names the caller, and reason says why;
// both are in the log, in the reason of the letter and in Hooks.Acted.
func (s *Subscriber) Reject(by, topic string, partition int32, offset int64, reason string) error {
	why := fmt.Errorf("%w, by %s: %s", ErrByHand, by, reason)
	return s.act(ActedEvent{By: by, Action: ActionReject, Topic: topic, Partition: partition, Offset: offset, Reason: reason},
		func(sub *subscription) error { return sub.running.Reject(topic, partition, offset, why) })
}

// Limits are settings that can be changed while a Subscriber runs.
type Limits struct {
	// MaxInFlight replaces SubscriberConfig.MaxInFlight, and must not exceed it. 0 leaves it
	// as it is. Running handlers continue; new ones start once fewer are running. It does not
	// apply to batches.
	MaxInFlight int
	// MaxDeliveries replaces that of SubscriberConfig and of each Middleware, from the next
	// nack on. 0 leaves it as it is; Unlimited means no limit.
	MaxDeliveries int
	// MaxPerSecond limits the deliveries of each subscription, whatever their partition: they
	// are spaced evenly, without bursts. A record that waits for its turn counts as in flight.
	// 0 leaves it as it is; Unlimited means no limit, which is the default.
	MaxPerSecond float64
}

// SetLimits changes the limits of all subscriptions, including later ones, until it is
// called again. by names the caller, for the log and Hooks.Acted.
func (s *Subscriber) SetLimits(by string, l Limits) error {
	if most := s.config.MaxInFlight; l.MaxInFlight < 0 || l.MaxInFlight > most {
		return fmt.Errorf("ackpolicy: MaxInFlight: %d: want 0, to leave it, or 1 to %d, the configured one", l.MaxInFlight, most)
	}
	if l.MaxDeliveries < Unlimited {
		return fmt.Errorf("ackpolicy: MaxDeliveries: %d: want 0, to leave it, a positive number or Unlimited", l.MaxDeliveries)
	}
	if l.MaxPerSecond < 0 && l.MaxPerSecond != Unlimited || math.IsNaN(l.MaxPerSecond) {
		return fmt.Errorf("ackpolicy: MaxPerSecond: %v: want 0, to leave it, a positive number or Unlimited", l.MaxPerSecond)
	}
	s.mu.Lock()
	if l.MaxInFlight > 0 {
		s.maxInFlight = l.MaxInFlight
	}
	if l.MaxPerSecond != 0 {
		s.maxPerSecond = max(0, l.MaxPerSecond)
	}
	s.mu.Unlock()
	if l.MaxDeliveries != 0 {
		s.maxDeliveries.Store(int64(l.MaxDeliveries))
	}
	event := ActedEvent{By: by, Action: ActionLimit, Partition: -1, Offset: -1, Limits: l}
	for _, sub := range s.live() {
		if l.MaxInFlight > 0 {
			sub.running.SetMaxInFlight(l.MaxInFlight)
		}
		if l.MaxPerSecond != 0 {
			sub.running.SetPace(max(0, l.MaxPerSecond))
		}
		sub.acted(event, sub.logger, sub.running.Topics()...)
	}
	return nil
}

// mostInFlight returns the current MaxInFlight.
func (s *Subscriber) mostInFlight() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.maxInFlight, s.config.MaxInFlight)
}

// mostPerSecond returns the current Limits.MaxPerSecond; 0 means no limit.
func (s *Subscriber) mostPerSecond() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.maxPerSecond
}

// act calls a function with the subscription that has the partition of a record.
func (s *Subscriber) act(event ActedEvent, do func(*subscription) error) error {
	err := ErrNotAssigned
	for _, sub := range s.of(event.Topic) {
		if err = do(sub); err == nil {
			sub.actedOn(event)
			return nil
		}
		if !errors.Is(err, ErrNotAssigned) {
			break
		}
	}
	return fmt.Errorf("ackpolicy: cannot %s: topic %s, partition %d: %w", event.Action, event.Topic, event.Partition, err)
}

func (s *Subscriber) of(topic string) []*subscription {
	return slices.DeleteFunc(s.live(), func(sub *subscription) bool { return !sub.running.Reads(topic) })
}

// actedOn logs an action on one topic, and calls the hook.
func (s *subscription) actedOn(e ActedEvent) { s.acted(e, s.loggerOf(e.Topic), e.Topic) }

// acted logs an action, and calls the hook for each topic.
func (s *subscription) acted(e ActedEvent, logger watermill.LoggerAdapter, topics ...string) {
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
		fields["max_in_flight"], fields["max_deliveries"], fields["max_per_second"] = e.Limits.MaxInFlight, e.Limits.MaxDeliveries, e.Limits.MaxPerSecond
	}
	logger.Info("Subscription changed by hand", fields)
	e.Group = s.sub.config.Kafka.ConsumerGroup
	for _, e.Topic = range topics {
		tell(s, "Hooks.Acted", s.sub.config.Hooks.Acted, e)
	}
}
