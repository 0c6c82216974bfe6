package chaos

import (
	"fmt"
	"time"

	"github.com/IBM/sarama"
)

// producer writes at a constant rate. It fills the partitions in turn, each from offset 0 on without a gap.
type producer struct {
	spec   Spec
	ledger *Ledger
	sync   sarama.SyncProducer
	stop   chan struct{}
	done   chan struct{}
	ends   []int64 // the next offset of each partition
	err    error
}

func startProducer(spec Spec, ledger *Ledger) (*producer, error) {
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Return.Successes = true
	cfg.Producer.Retry.Max = 50
	cfg.Producer.Idempotent = true
	cfg.Net.MaxOpenRequests = 1
	client, err := sarama.NewSyncProducer(spec.Brokers, cfg)
	if err != nil {
		return nil, err
	}
	p := &producer{
		spec: spec, ledger: ledger, sync: client,
		stop: make(chan struct{}), done: make(chan struct{}), ends: make([]int64, partitions),
	}
	go p.run()
	return p, nil
}

func (p *producer) run() {
	defer close(p.done)
	ticker := time.NewTicker(25 * time.Millisecond)
	defer ticker.Stop()
	began, sent := time.Now(), 0
	for p.err == nil {
		select {
		case <-ticker.C:
		case <-p.stop:
			return
		}
		var batch []*sarama.ProducerMessage
		for due := int(time.Since(began).Seconds() * p.spec.rate()); sent < due; sent++ {
			id := ID{int32(sent % partitions), p.ends[sent%partitions]}
			batch = append(batch, &sarama.ProducerMessage{
				Topic: p.spec.Topic, Partition: id.Partition, Metadata: id,
				Key: sarama.StringEncoder(p.spec.key(id)), Value: sarama.StringEncoder(fmt.Sprint(sent)),
			})
			p.ends[id.Partition]++
		}
		p.err = p.send(batch)
	}
}

func (p *producer) send(batch []*sarama.ProducerMessage) error {
	if err := p.sync.SendMessages(batch); err != nil {
		return err
	}
	for _, msg := range batch {
		id := msg.Metadata.(ID)
		if msg.Offset != id.Offset {
			return fmt.Errorf("%v: the record got offset %d", id, msg.Offset)
		}
		p.ledger.Write(Produced, id, 0, p.spec.key(id))
	}
	return nil
}

// finish returns the partitions' ends.
func (p *producer) finish() ([]int64, error) {
	close(p.stop)
	<-p.done
	if err := p.sync.Close(); p.err == nil {
		p.err = err
	}
	return p.ends, p.err
}
