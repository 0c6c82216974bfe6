package chaos

import (
	"fmt"
	"strconv"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// read reads what the members have written.
func (r *Record) read() error {
	if r.Output == ExactlyOnce {
		if err := r.awaitEnds(); err != nil || len(r.Open) > 0 {
			return err // readers would wait
		}
		var err error
		if r.Aborted, err = brokertest.AbortedTwice(r.Brokers, r.letterTopic(), r.outputTopic()); err != nil {
			return err
		}
	}
	if r.letters() {
		r.Letters = map[ID]int{}
		if err := r.each(r.letterTopic(), func(msg *sarama.ConsumerMessage) error {
			id, err := origin(msg)
			r.Letters[id]++
			return err
		}); err != nil {
			return err
		}
	}
	if r.Output == "" {
		return nil
	}
	r.Outputs = make([][]ID, partitions)
	return r.each(r.outputTopic(), func(msg *sarama.ConsumerMessage) error {
		id, err := outputOf(msg.Value)
		r.Outputs[msg.Partition] = append(r.Outputs[msg.Partition], id)
		return err
	})
}

// each calls do with each committed record of a topic.
func (r *Record) each(topic string, do func(*sarama.ConsumerMessage) error) error {
	for p := range int32(partitions) {
		if err := brokertest.Read(r.Brokers, topic, p, patience, do); err != nil {
			return err
		}
	}
	return nil
}

// awaitEnds returns once no transaction of the run is open, or it takes too long: what a member leaves that is killed,
// the broker aborts.
func (r *Record) awaitEnds() (err error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		r.Open, err = brokertest.OpenTransactions(r.Brokers, r.Group+"-", r.letterTopic(), r.outputTopic())
		if err == nil && len(r.Open) == 0 || time.Now().After(deadline) {
			return err
		}
	}
}

// origin is the record of a letter.
func origin(msg *sarama.ConsumerMessage) (id ID, err error) {
	for _, h := range msg.Headers {
		var n int64
		switch string(h.Key) {
		case ackpolicy.HeaderPartition:
			n, err = strconv.ParseInt(string(h.Value), 10, 32)
			id.Partition = int32(n)
		case ackpolicy.HeaderOffset:
			id.Offset, err = strconv.ParseInt(string(h.Value), 10, 64)
		}
		if err != nil {
			return id, fmt.Errorf("a letter's headers: %w", err)
		}
	}
	return id, nil
}
