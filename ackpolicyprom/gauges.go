package ackpolicyprom

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("ackpolicy_"+name, help, labels, nil)
}

var (
	live     = desc("live", "1; 0 if only a restart fixes a Subscriber: what /livez says.", labelGroup)
	ready    = desc("ready", "1; 0 if records wait that should not: what /readyz says.", labelGroup)
	problems = desc("problems", "Problems that Health reports, by code. There is no series without one.", labelGroup, labelTopic, "code")
	failing  = desc("kafka_failing_seconds", "For how long Kafka has failed a subscription, by symptom. There is no series while it works.", labelGroup, labelTopic, "symptom")
	oldest   = desc("oldest_record_seconds_max", "The longest time that a record that holds a partition has been doing what it does, by status.", labelGroup, labelTopic, labelHandler, "status")
)

// subscriptionGauge is a value of each subscription; those of one topic are added up.
type subscriptionGauge struct {
	desc  *prometheus.Desc
	value func(*ackpolicy.SubscriptionState) float64
}

var subscriptionGauges = []subscriptionGauge{
	{subscriptionDesc("subscriptions", "Subscriptions that have not ended."), func(*ackpolicy.SubscriptionState) float64 { return 1 }},
	{subscriptionDesc("subscriptions_consuming", "Subscriptions whose member has its assignment."), func(s *ackpolicy.SubscriptionState) float64 { return number(s.Consuming) }},
	{subscriptionDesc("assigned_partitions", "Partitions that are assigned."), func(s *ackpolicy.SubscriptionState) float64 { return float64(len(s.Partitions)) }},
	{subscriptionDesc("buffered_bytes", "What unsettled records take up in memory."), func(s *ackpolicy.SubscriptionState) float64 { return float64(s.BufferedBytes) }},
	{subscriptionDesc("buffered_limit_bytes", "MaxBufferedBytes, for all subscriptions together."), func(s *ackpolicy.SubscriptionState) float64 { return float64(s.MaxBufferedBytes) }},
}

// gauge is a value of each partition. Those of one topic are added up, or the largest counts.
type gauge struct {
	desc    *prometheus.Desc
	largest bool
	value   func(now time.Time, p *partition) float64
}

type partition = ackpolicy.PartitionState

var gauges = []gauge{
	sum("work_lag_records", "Records that are not settled, in the window and not fetched yet.", func(p *partition) float64 { return float64(p.WorkLag) }),
	sum("committed_lag_records", "How far the committed offsets are behind the ends of the log, as Kafka's tools count it.", func(p *partition) float64 { return float64(p.CommittedLag) }),
	largest("work_lag_records_max", "The largest work lag of a partition.", func(p *partition) float64 { return float64(p.WorkLag) }),
	sum("in_flight_deliveries", "Deliveries whose handlers have not returned.", func(p *partition) float64 { return float64(p.InFlight) }),
	sum("queued_records", "Fetched records that this member has not delivered yet.", func(p *partition) float64 { return float64(p.Queued) }),
	sum("delayed_records", "Records that wait for the time of their first delivery.", func(p *partition) float64 { return float64(p.Delayed) }),
	sum("nacked_records", "Records that wait for their next delivery.", func(p *partition) float64 { return float64(p.Nacked) }),
	sum("pending_records", "Records that their handlers left without settling them.", func(p *partition) float64 { return float64(p.Pending) }),
	sum("unstored_letters", "Rejected records whose dead letters are not stored.", func(p *partition) float64 { return float64(p.Letters) }),
	sum("unmarked_records", "Settled records that a restart would repeat, since the commit has no room for their marks.", func(p *partition) float64 { return float64(p.Unmarked) }),
	largest("uncommitted_records_max", "The most records of a partition that count for MaxUncommitted.", func(p *partition) float64 { return float64(p.Uncommitted) }),
	largest("ledger_used_ratio_max", "The largest part of the commit metadata's room that a partition's ledger takes.", func(p *partition) float64 {
		if p.LedgerRoom == 0 {
			return 0
		}
		return float64(p.LedgerBytes) / float64(p.LedgerRoom)
	}),
	sum("slow_handlers", "Handlers that have run for longer than HandlerSlow.", func(p *partition) float64 { return float64(p.SlowHandlers) }),
	sum("paused_partitions", "Partitions that are paused by Pause.", func(p *partition) float64 { return number(p.Held) }),
	sum("blocked_partitions", "Partitions at MaxUncommitted.", func(p *partition) float64 { return number(p.Blocked) }),
	sum("failing_commit_partitions", "Partitions whose last commit is not confirmed.", func(p *partition) float64 { return number(p.CommitErr != nil) }),
	{subscriptionDesc("oldest_record_attempts_max", "The most deliveries of a record that holds a partition."), true, func(_ time.Time, p *partition) float64 {
		if p.Oldest == nil {
			return 0
		}
		return float64(p.Oldest.Attempt)
	}},
	{subscriptionDesc("stalled_seconds_max", "The longest time that a partition has settled nothing, though records wait in it or are with handlers."), true, stalled},
}

// partitionGauges are there with Options.PerPartition.
var partitionGauges = []gauge{
	ofPartition("watermark_offset", "Every record below it is settled.", func(p *partition) float64 { return float64(p.Watermark) }),
	ofPartition("committed_offset", "What Kafka has stored; -1: not known.", func(p *partition) float64 { return float64(p.Committed) }),
	ofPartition("end_offset", "The end of the log at the last fetch.", func(p *partition) float64 { return float64(p.HighWatermark) }),
	ofPartition("work_lag_records", "Records that are not settled.", func(p *partition) float64 { return float64(p.WorkLag) }),
	ofPartition("committed_lag_records", "How far the committed offset is behind the end.", func(p *partition) float64 { return float64(p.CommittedLag) }),
	ofPartition("oldest_record_offset", "The record that holds the partition; -1: none does.", func(p *partition) float64 {
		if p.Oldest == nil {
			return -1
		}
		return float64(p.Oldest.Offset)
	}),
	ofPartition("oldest_record_attempts", "Its deliveries.", func(p *partition) float64 {
		if p.Oldest == nil {
			return 0
		}
		return float64(p.Oldest.Attempt)
	}),
	{desc("partition_stalled_seconds", "For how long the partition has settled nothing, though records wait in it or are with handlers.", partitionLabels...), false, stalled},
}

var partitionLabels = []string{labelGroup, labelTopic, "partition"}

func subscriptionDesc(name, help string) *prometheus.Desc {
	return desc(name, help, labelGroup, labelTopic, labelHandler)
}

func sum(name, help string, value func(*partition) float64) gauge {
	return gauge{subscriptionDesc(name, help), false, of(value)}
}

func largest(name, help string, value func(*partition) float64) gauge {
	return gauge{subscriptionDesc(name, help), true, of(value)}
}

func ofPartition(name, help string, value func(*partition) float64) gauge {
	return gauge{desc("partition_"+name, help, partitionLabels...), false, of(value)}
}

func of(value func(*partition) float64) func(time.Time, *partition) float64 {
	return func(_ time.Time, p *partition) float64 { return value(p) }
}

// stalled is 0 for a partition that is paused or waits for a time that its producer asked for, and for one whose open
// records all wait for themselves only: for their next delivery, a late settlement, their letter.
func stalled(now time.Time, p *partition) float64 {
	if p.Oldest == nil || p.Held || p.Draining || p.Oldest.Status == ackpolicy.RecordDelayed || p.Queued == 0 && p.InFlight == 0 {
		return 0
	}
	return max(0, now.Sub(p.Moved).Seconds())
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
