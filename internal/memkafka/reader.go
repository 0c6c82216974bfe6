package memkafka

import (
	"sync"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
)

// fetchRecords is how many records a fetch brings at most. Consumer.Fetch.Default bounds its size.
const fetchRecords = 500

// partitionReader hands out the records of a partition, as sarama's PartitionConsumer does.
type partitionReader struct {
	cluster *Cluster
	client  sarama.Client
	at      place
	from    int64

	messages chan *sarama.ConsumerMessage
	stop     chan struct{} // closed by close
	closing  sync.Once
	begin    sync.Once

	mu     sync.Mutex
	paused bool
	resume chan struct{} // closed by the end of the pause
}

func (c *Cluster) newReader(client sarama.Client, at place, from int64) *partitionReader {
	return &partitionReader{
		cluster: c, client: client, at: at, from: from,
		messages: make(chan *sarama.ConsumerMessage, client.Config().ChannelBufferSize),
		stop:     make(chan struct{}), resume: make(chan struct{}),
	}
}

// start begins to read. Until then a pause keeps everything back.
func (r *partitionReader) start(goes *sync.WaitGroup) {
	r.begin.Do(func() { goes.Go(r.run) })
}

func (r *partitionReader) close() { r.closing.Do(func() { close(r.stop) }) }

func (r *partitionReader) run() {
	defer close(r.messages)
	for {
		select {
		case <-r.stop:
			return
		default:
		}
		records, wait := r.fetch()
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-r.stop:
				return
			}
		}
		for _, m := range records {
			select {
			case r.messages <- m:
				r.from = m.Offset + 1
			case <-r.stop:
				return
			}
		}
		// sarama asks before each fetch but the first.
		if _, _, err := r.client.LeaderAndEpoch(r.at.topic, r.at.partition); err != nil {
			return
		}
	}
}

// fetch returns the next records, or what to wait for.
func (r *partitionReader) fetch() (records []*sarama.ConsumerMessage, wait <-chan struct{}) {
	r.mu.Lock()
	paused, resume := r.paused, r.resume
	r.mu.Unlock()
	if paused {
		return nil, resume
	}
	c := r.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	log := c.log(r.at.topic, r.at.partition)
	if log == nil || r.from >= int64(len(log.records)) {
		return nil, c.changed
	}
	size, most := 0, int(r.client.Config().Consumer.Fetch.Default)
	for _, m := range log.records[r.from:] {
		if len(records) == fetchRecords || size >= most {
			break
		}
		records = append(records, record.Detached(m))
		size += record.Size(m)
	}
	return records, nil
}

func (r *partitionReader) pause(paused bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused = paused; !paused {
		close(r.resume)
		r.resume = make(chan struct{})
	}
}

// end returns the end of the partition.
func (r *partitionReader) end() int64 {
	c := r.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if log := c.log(r.at.topic, r.at.partition); log != nil {
		return int64(len(log.records))
	}
	return 0
}
