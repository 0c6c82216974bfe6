package consumer

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// clients are the connections of a subscription, which sarama lends to one
// request at a time: commits would wait behind a fetch, and a fetch behind a
// JoinGroup, which is answered once all members have come or are given up.
type clients struct {
	fetch *fetchClient
	side  sarama.Client // commits, and reads single records again
}

func open(cfg *Config, asked func(partition int32), worked func()) (_ *clients, err error) {
	c := &clients{fetch: &fetchClient{topic: cfg.Topic, offsets: map[positionKey]int64{}, asked: asked}}
	defer func() {
		if err != nil {
			_ = c.close()
		}
	}()
	if c.fetch.Client, err = sarama.NewClient(cfg.Brokers, cfg.Sarama); err != nil {
		return nil, err
	}
	worked()
	if c.side, err = sarama.NewClient(cfg.Brokers, narrowed(cfg.Side)); err != nil {
		return nil, err
	}
	c.fetch.side = c.side
	if cfg.Group != "" {
		member := narrowed(cfg.Sarama)
		// A JoinGroup answers once the slowest member is back, up to the
		// rebalance timeout; a read timeout below that never gets an answer.
		member.Net.ReadTimeout = max(member.Net.ReadTimeout, member.Consumer.Group.Rebalance.Timeout+5*time.Second)
		// Whoever asks for the coordinator tries again by itself. With retries inside of each of
		// its many, it would be silent for more than a minute. The heartbeat counts its own by
		// the same setting: it gets as many more.
		retries := member.Metadata.Retry.Max
		member.Metadata.Retry.Max = 0
		group := *cfg.Sarama
		group.Metadata.Retry.Max = (retries+1)*(retries+1) - 1
		c.fetch.config = &group
		if c.fetch.member, err = sarama.NewClient(cfg.Brokers, member); err != nil {
			return nil, err
		}
	}
	if !knows(c.fetch, cfg.Topic) {
		// This creates it, where brokers do that.
		if err := c.fetch.RefreshMetadata(cfg.Topic); !answered(err) {
			return nil, err
		}
	}
	if !knows(c.fetch, cfg.Topic) {
		return c, nil
	}
	return c, c.learn(cfg)
}

func knows(client sarama.Client, topic string) bool {
	topics, err := client.Topics()
	return err == nil && slices.Contains(topics, topic)
}

// answered reports whether a broker has answered, be it that it refused what was asked for.
func answered(err error) bool {
	var refused sarama.KError
	return err == nil || errors.As(err, &refused) && !errors.Is(err, sarama.ErrSASLAuthenticationFailed)
}

// narrowed is a copy of a configuration for a client that has to do with one topic. What
// sarama loads otherwise, at the start and from time to time, are the metadata of all
// topics: with thousands of them 50 ms and megabytes, for each client.
func narrowed(cfg *sarama.Config) *sarama.Config {
	own := *cfg
	own.Metadata.Full = false
	own.Metadata.AllowAutoTopicCreation = false // the fetching client creates what is missing
	return &own
}

// learn has the clients that do not load all metadata load those of the topic, which exists. With them
// come the addresses of all brokers, without which a client whose broker is lost has only those it was
// given to turn to; and both are refreshed from then on.
func (c *clients) learn(cfg *Config) error {
	for _, client := range []sarama.Client{c.side, c.fetch.member} {
		if client == nil || knows(client, cfg.Topic) {
			continue
		}
		retry := &cfg.Sarama.Metadata.Retry
		for attempt := client.Config().Metadata.Retry.Max; ; attempt++ {
			err := client.RefreshMetadata(cfg.Topic)
			if answered(err) {
				break // what it does not know of the topic now, it asks for when it needs it
			}
			if attempt >= retry.Max {
				return err
			}
			time.Sleep(retry.Backoff) // as sarama does, with the retries that we took away
		}
	}
	return nil
}

// probe asks the brokers whether partitions can be fetched from an offset on; see health.
func (c *clients) probe(topic string, from map[int32]int64) map[int32]error {
	errs, at := map[int32]error{}, map[int32]reread.Position{}
	began := time.Now()
	for p, offset := range from {
		if time.Since(began) > time.Second {
			break // without a leader each takes its time
		}
		leader, epoch, err := c.fetch.Client.LeaderAndEpoch(topic, p)
		if err != nil {
			errs[p] = err
			continue
		}
		at[p] = reread.Position{Offset: offset, Leader: leader.ID(), Epoch: epoch}
	}
	maps.Copy(errs, reread.Probe(c.side, topic, at))
	if c.side.Closed() || c.fetch.Closed() {
		return nil
	}
	return errs
}

func (c *clients) close() error {
	var errs []error
	for _, client := range []sarama.Client{c.fetch.Client, c.fetch.member, c.side} {
		if client != nil {
			errs = append(errs, client.Close())
		}
	}
	return errors.Join(errs...)
}

// fetchClient is what sarama takes for its only client. It asks
// the coordinator over another one.
//
// And it remembers what GetOffset answered. sarama resolves "newest" and
// "oldest" inside ConsumePartition and tells nobody the outcome; asking the broker
// once more, later, may answer beyond records that were fetched already.
type fetchClient struct {
	sarama.Client
	topic string
	// refreshed is called when the topic's metadata have been refreshed, as a fetch that was interrupted does.
	refreshed func() error
	member    sarama.Client // nil without a group
	side      sarama.Client
	config    *sarama.Config // the group's; nil without one
	asked     func(partition int32)
	// unreadable is told which partitions cannot be begun, and which again can; failing reports whether there is an outage.
	unreadable func(partition int32, err error)
	failing    func() bool

	mu      sync.Mutex
	offsets map[positionKey]int64
}

type positionKey struct {
	topic     string
	partition int32
	which     int64 // sarama.OffsetNewest or OffsetOldest
}

func (c *fetchClient) Config() *sarama.Config {
	if c.config == nil {
		return c.Client.Config()
	}
	return c.config
}

func (c *fetchClient) Coordinator(group string) (*sarama.Broker, error) {
	return c.member.Coordinator(group)
}

func (c *fetchClient) RefreshCoordinator(group string) error {
	return c.member.RefreshCoordinator(group)
}

// LeaderAndEpoch is what sarama asks for when it begins to fetch a partition, after each
// fetch that succeeded, before it sends the next one, and before each retry.
func (c *fetchClient) LeaderAndEpoch(topic string, partition int32) (*sarama.Broker, int32, error) {
	leader, epoch, err := c.Client.LeaderAndEpoch(topic, partition)
	if err == nil {
		c.asked(partition)
	}
	return leader, epoch, err
}

// RefreshMetadata is asked by sarama for the topic that is consumed, and by the leader of the
// group for those of all members. A topic of others that is not there, say since it
// was deleted, must not keep the leader from assigning the rest: the whole group would stand still.
func (c *fetchClient) RefreshMetadata(topics ...string) error {
	if c.member == nil || (len(topics) == 1 && topics[0] == c.topic) {
		err := c.refresh(topics)
		if err == nil && c.refreshed != nil {
			err = c.refreshed()
		}
		return err
	}
	err := c.member.RefreshMetadata(topics...) // which does not try again: the group waits
	if errors.Is(err, sarama.ErrUnknownTopicOrPartition) || errors.Is(err, sarama.ErrLeaderNotAvailable) {
		return nil // Partitions says of which topic
	}
	return err
}

// Partitions returns none for a topic that is not there, for the same reason.
func (c *fetchClient) Partitions(topic string) ([]int32, error) {
	if c.member == nil {
		return c.Client.Partitions(topic)
	}
	client := c.member
	if topic == c.topic {
		client = c.Client
	}
	partitions, err := client.Partitions(topic)
	if errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		return nil, nil
	}
	return partitions, err
}

func (c *fetchClient) GetOffset(topic string, partition int32, which int64) (int64, error) {
	// Not over the fetching one: partitions begin one after the other, and would each wait for the fetch of those before.
	offset, err := c.side.GetOffset(topic, partition, which)
	if err == nil {
		c.mu.Lock()
		c.offsets[positionKey{topic, partition, which}] = offset
		c.mu.Unlock()
	}
	return offset, err
}

// position answers what sarama resolved for a partition it consumes.
func (c *fetchClient) position(topic string, partition int32, which int64) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	offset, ok := c.offsets[positionKey{topic, partition, which}]
	return offset, ok
}
