package simulation

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// What is judged of transactions, in one line, for a reader with read_committed:
//
//	Each record has put out what the delivery held that settled it, or its letter: once, all of it, nothing else, in the order of its lane.

// ack takes note that a delivery may be acked from now on.
func (d *delivery) ack(how string) {
	d.acked = true
	d.record.ack(how)
}

func (r *record) ack(how string) {
	if r.settled == "" {
		r.settled = "acked by " + how
	}
}

// throwAway takes note that what a delivery holds is thrown away, unless it is settled.
func (d *delivery) throwAway() {
	if !d.acked {
		d.held = 0
	}
}

// fails takes note that a handler returns an error.
func (j *judge) fails(d *delivery) {
	j.mu.Lock()
	defer j.mu.Unlock()
	d.throwAway()
}

// published takes note of what a delivery has published.
func (j *judge) published(d *delivery, n int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(d.term.m, d.part, d.offset, "attempt %d publishes %d: %v", d.attempt, n, err)
	if err == nil && !j.gone[d.term.m] {
		d.held += n
	}
}

// rejects takes note that a letter is made: when it is stored, its record is settled.
func (j *judge) rejects(m *member, l ackpolicy.Letter) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(m, l.Partition, l.Offset, "a letter: %v", l.Reason)
	if j.gone[m] || l.Offset >= int64(len(j.book[l.Partition])) {
		return
	}
	r := j.book[l.Partition][l.Offset]
	if r.rejected = true; r.settled == "" {
		r.settled = "rejected"
	}
}

// asCommit returns what a request says to be stored.
func asCommit(req kmsg.Request) *kmsg.OffsetCommitRequest {
	t, ok := req.(*kmsg.TxnOffsetCommitRequest)
	if !ok {
		return req.(*kmsg.OffsetCommitRequest)
	}
	c := &kmsg.OffsetCommitRequest{Generation: t.Generation, MemberID: t.MemberID}
	for _, topic := range t.Topics {
		to := kmsg.OffsetCommitRequestTopic{Topic: topic.Topic}
		for _, p := range topic.Partitions {
			to.Partitions = append(to.Partitions, kmsg.OffsetCommitRequestTopicPartition{Partition: p.Partition, Offset: p.Offset, Metadata: p.Metadata})
		}
		c.Topics = append(c.Topics, to)
	}
	return c
}

const theEnd = "end"

// readOutput reads all committed output and letters. A transaction that is open delays it.
func (w *world) readOutput() (out, letters []*sarama.ConsumerMessage) {
	cfg := sarama.NewConfig()
	cfg.ClientID = "judge"
	cfg.Consumer.IsolationLevel = sarama.ReadCommitted
	cfg.Consumer.MaxWaitTime = 100 * time.Millisecond
	cfg.Net.Proxy.Enable, cfg.Net.Proxy.Dialer = true, w.network.link()
	b := w.connect()
	defer b.Close()
	consumer, err := sarama.NewConsumer([]string{broker}, cfg)
	must(err)
	defer consumer.Close()
	read := func(topic string, part int32) (all []*sarama.ConsumerMessage) {
		send(b, topic, part, &sarama.Record{Value: []byte(theEnd)})
		pc, err := consumer.ConsumePartition(topic, part, sarama.OffsetOldest)
		must(err)
		defer pc.Close()
		hangs := time.NewTimer(w.timeout + 5*time.Second)
		defer hangs.Stop()
		for {
			select {
			case m := <-pc.Messages():
				if string(m.Value) == theEnd {
					return all
				}
				all = append(all, m)
			case <-hangs.C:
				w.violate("hanging", -1, -1, "%s/%d: a transaction is open longer than its timeout, %v", topic, part, w.timeout)
				return all
			}
		}
	}
	for part := range int32(outputs) {
		out = append(out, read(output, part)...)
	}
	for part := range w.partitions {
		letters = append(letters, read(letterTopic, part)...)
	}
	return out, letters
}

// judgeOutput judges what is there in the end.
func (j *judge) judgeOutput(out, letters []*sarama.ConsumerMessage) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.topics > 1 {
		return // some records come twice
	}
	put, last, lettered := map[*record]map[int][]int{}, map[string]*record{}, map[*record]int{}
	for _, m := range out {
		var part, serial, n int
		var offset int64
		if _, err := fmt.Sscanf(string(m.Value), "%d/%d by %d #%d", &part, &offset, &serial, &n); err != nil {
			j.violateLocked("output", -1, -1, "%q", m.Value)
			continue
		}
		r := j.book[part][offset]
		if put[r] == nil {
			put[r] = map[int][]int{}
		}
		put[r][serial] = append(put[r][serial], n)
		// Under Manual, records of a lane are settled in any order. Those behind a rejected one do not wait for its letter.
		if before := last[string(m.Key)]; before != nil && before.offset > r.offset && j.w.policy != ackpolicy.Manual && !r.rejected {
			j.violateLocked("output", r.part, r.offset, "%d/%d has output behind that of %d, of the same lane", r.part, r.offset, before.offset)
		}
		last[string(m.Key)] = r
	}
	for _, m := range letters {
		r := letterOf(j.book, m)
		lettered[r]++
	}
	for _, records := range j.book {
		for _, r := range records {
			if !r.allows(put[r], lettered[r]) {
				j.violateLocked("output", r.part, r.offset, "%d/%d has %d letters, and output by delivery %v; its deliveries: %v", r.part, r.offset, lettered[r], put[r], r.all)
			}
		}
	}
}

// letterOf returns the record that a letter is about.
func letterOf(book [][]*record, m *sarama.ConsumerMessage) *record {
	at := map[string]int{}
	for _, h := range m.Headers {
		at[string(h.Key)], _ = strconv.Atoi(string(h.Value))
	}
	return book[at[ackpolicy.HeaderPartition]][at[ackpolicy.HeaderOffset]]
}

// allows reports whether a record may have this output.
func (r *record) allows(put map[int][]int, letters int) bool {
	switch {
	case letters > 0:
		return letters == 1 && r.rejected && len(put) == 0
	case len(put) == 0:
		return r.silent || slices.ContainsFunc(r.all, func(d *delivery) bool { return d.acked && d.held == 0 })
	case len(put) > 1:
		return false
	}
	return slices.ContainsFunc(r.all, func(d *delivery) bool {
		got := slices.Sorted(slices.Values(put[d.serial]))
		return d.acked && len(got) > 0 && len(got) == d.held && got[0] == 0 && got[len(got)-1] == d.held-1 && len(slices.Compact(got)) == d.held
	})
}

func (d *delivery) String() string {
	return fmt.Sprintf("%d: attempt %d held %d acked=%t", d.serial, d.attempt, d.held, d.acked)
}
