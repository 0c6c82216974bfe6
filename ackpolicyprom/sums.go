package ackpolicyprom

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// sums aggregates the states of Subscribers, of which several may have the same group and topic.
type sums struct {
	perPartition  bool
	groups        map[string]*groupSums
	problems      map[problem]float64
	failing       map[failure]float64
	subscriptions map[subscription]*subscriptionSums
	partitions    map[partitionOf][]float64
}

type groupSums struct{ live, ready bool }

type problem struct{ group, topic, code string }

type failure struct{ group, topic, symptom string }

type partitionOf struct {
	group, topic string
	partition    int32
}

type subscriptionSums struct {
	values     []float64 // of subscriptionGauges
	partitions []float64 // of gauges
	oldest     map[ackpolicy.RecordStatus]float64
}

func newSums(perPartition bool) *sums {
	return &sums{
		perPartition: perPartition,
		groups:       map[string]*groupSums{}, problems: map[problem]float64{}, failing: map[failure]float64{},
		subscriptions: map[subscription]*subscriptionSums{}, partitions: map[partitionOf][]float64{},
	}
}

func (s *sums) add(st *ackpolicy.State, health ackpolicy.Health) {
	group := s.groups[st.ConsumerGroup]
	if group == nil {
		group = &groupSums{true, true}
		s.groups[st.ConsumerGroup] = group
	}
	group.live, group.ready = group.live && health.Live, group.ready && health.Ready
	for _, p := range health.Problems {
		s.problems[problem{st.ConsumerGroup, p.Topic, string(p.Code)}]++
	}
	for i := range st.Subscriptions {
		s.addSubscription(st, &st.Subscriptions[i])
	}
}

func (s *sums) addSubscription(st *ackpolicy.State, sub *ackpolicy.SubscriptionState) {
	for _, f := range sub.Failing {
		key := failure{st.ConsumerGroup, sub.Topic, f.Symptom}
		s.failing[key] = max(s.failing[key], st.Time.Sub(f.Since).Seconds())
	}
	key := subscription{st.ConsumerGroup, sub.Topic, sub.Handler}
	of := s.subscriptions[key]
	if of == nil {
		of = &subscriptionSums{
			values: make([]float64, len(subscriptionGauges)), partitions: make([]float64, len(gauges)),
			oldest: map[ackpolicy.RecordStatus]float64{},
		}
		s.subscriptions[key] = of
	}
	for i := range subscriptionGauges {
		of.values[i] += subscriptionGauges[i].value(sub)
	}
	for i := range sub.Partitions {
		p := &sub.Partitions[i]
		of.add(st.Time, p)
		if s.perPartition {
			s.addPartition(partitionOf{st.ConsumerGroup, sub.Topic, p.Partition}, st.Time, p)
		}
	}
}

func (of *subscriptionSums) add(now time.Time, p *partition) {
	for i := range gauges {
		v := gauges[i].value(now, p)
		if gauges[i].largest {
			of.partitions[i] = max(of.partitions[i], v)
		} else {
			of.partitions[i] += v
		}
	}
	if old := p.Oldest; old != nil {
		of.oldest[old.Status] = max(of.oldest[old.Status], now.Sub(old.Since).Seconds())
	}
}

// addPartition replaces what another subscription without a group says of the same partition.
func (s *sums) addPartition(key partitionOf, now time.Time, p *partition) {
	values := make([]float64, len(partitionGauges))
	for i := range partitionGauges {
		values[i] = partitionGauges[i].value(now, p)
	}
	s.partitions[key] = values
}

func (s *sums) collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, v float64, labels ...string) {
		for i := range labels {
			labels[i] = label(labels[i])
		}
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for name, g := range s.groups {
		send(live, number(g.live), name)
		send(ready, number(g.ready), name)
	}
	for p, n := range s.problems {
		send(problems, n, p.group, p.topic, p.code)
	}
	for f, seconds := range s.failing {
		send(failing, seconds, f.group, f.topic, f.symptom)
	}
	for of, sub := range s.subscriptions {
		for i, v := range sub.values {
			send(subscriptionGauges[i].desc, v, of.group, of.topic, of.handler)
		}
		for i, v := range sub.partitions {
			send(gauges[i].desc, v, of.group, of.topic, of.handler)
		}
		for status, seconds := range sub.oldest {
			send(oldest, seconds, of.group, of.topic, of.handler, status.String())
		}
	}
	for of, values := range s.partitions {
		for i, v := range values {
			send(partitionGauges[i].desc, v, of.group, of.topic, strconv.Itoa(int(of.partition)))
		}
	}
}
