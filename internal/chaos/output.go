package chaos

import (
	"errors"
	"fmt"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// What members do with the output of a record.
const (
	ExactlyOnce = "exactly once"  // it joins a transaction
	AtLeastOnce = "at least once" // it is published by watermill-kafka
)

// NewCopySpec is a run whose members copy each record to another topic.
func NewCopySpec(seed uint64, protocol, output string) Spec {
	return Spec{
		Seed: seed, Protocol: protocol, Output: output, MaxUncommitted: 1000,
		Ordering: ackpolicy.OrderByKey, Policy: ackpolicy.NackOnError,
	}
}

func (s Spec) outputTopic() string { return s.Topic + ".out" }

// publisher returns that of the outputs.
func (m Membership) publisher(sub message.Subscriber, logger watermill.LoggerAdapter) (message.Publisher, error) {
	config := kafka.PublisherConfig{
		Brokers: m.Brokers,
		Marshaler: kafka.NewWithPartitioningMarshaler(func(_ string, msg *message.Message) (string, error) {
			id, err := outputOf(msg.Payload)
			return m.key(id), err
		}),
	}
	if m.Output == ExactlyOnce {
		return sub.(*ackpolicy.Subscriber).Publisher(config)
	}
	config.OverwriteSaramaConfig = kafka.DefaultSaramaSyncPublisherConfig()
	config.OverwriteSaramaConfig.Producer.RequiredAcks = sarama.WaitForAll
	m.useProxy(config.OverwriteSaramaConfig)
	return kafka.NewPublisher(config, logger)
}

// copy is a handler with an output, which names its record.
func (w *worker) copy(pub message.Publisher) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		d, _ := ackpolicy.FromMessage(msg)
		id := ID{d.Partition(), d.Offset()}
		out := message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, "%v", id))
		if w.spec.Output == ExactlyOnce && w.spec.behaviour(id).ends(d.Attempt()) != succeeds {
			// What is published before a nack or a reject does not appear.
			out.SetContext(msg.Context())
			if err := pub.Publish(w.spec.outputTopic(), out); err != nil && !errors.Is(err, ackpolicy.ErrRevoked) {
				w.ledger.Write(Unpublished, id, d.Attempt(), oneLine(err))
			}
		}
		if err := w.handle(msg); err != nil {
			return nil, err
		}
		return message.Messages{out}, nil
	}
}

// outputOf returns the record that an output names.
func outputOf(payload []byte) (id ID, err error) {
	if err = id.UnmarshalText(payload); err != nil {
		err = fmt.Errorf("the output %q: %w", payload, err)
	}
	return id, err
}

// outputs: each record that is acked has one output, each rejected one has a letter and no output, and the outputs of a
// key are in its order. At least once, what there is more of is counted.
func (j *judge) outputs() {
	found := map[ID]int{}
	for _, partition := range j.Outputs {
		last := map[string]ID{}
		for _, id := range partition {
			found[id]++
			key := j.key(id)
			if before := last[key]; id.Offset < before.Offset {
				j.Backward++
				if j.Output == ExactlyOnce {
					j.violation(RuleOutput, j.about(id), "the output of %v comes after that of %v", id, before)
				}
			}
			last[key] = id
		}
	}
	for p, end := range j.Ends {
		for offset := range end {
			j.output(ID{int32(p), offset}, found[ID{int32(p), offset}])
		}
	}
	for _, e := range j.Entries {
		if e.Kind == Unpublished {
			j.violation(RuleOutput, j.about(e.ID), "%v: member %d: its output was refused: %s", e.ID, e.Member, e.Detail)
		}
	}
	for _, open := range j.Open {
		j.violation(RuleOpen, func() string { return "" }, "a transaction is open at the end: %s", open)
	}
	for _, aborted := range j.Aborted {
		j.violation(RuleAborted, func() string { return "" }, "more than one aborted transaction, which readers may see: %s", aborted)
	}
}

func (j *judge) output(id ID, outputs int) {
	j.OutputsStored += outputs
	j.ExtraOutputs += max(0, outputs-1)
	acked, rejected := false, false
	for _, d := range j.records[id] {
		_, a := d.intends(ack)
		_, r := d.intends(reject)
		acked, rejected = acked || a, rejected || r
	}
	switch letters := j.Letters[id]; {
	case outputs+letters == 0 && id.Offset < j.Stored[id.Partition]: // behind that it is not handled, which is not lost
		j.violation(RuleOutput, j.about(id), "%v has neither an output nor a letter", id)
	case j.Output == AtLeastOnce:
	case outputs+letters > 1:
		j.violation(RuleOutput, j.about(id), "%v has %d outputs and %d letters", id, outputs, letters)
	case outputs > 0 && !acked, letters > 0 && !rejected:
		j.violation(RuleOutput, j.about(id), "%v has %d outputs and %d letters, which is not how a handler has ended", id, outputs, letters)
	}
}
