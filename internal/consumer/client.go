package consumer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/connections"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// clients has the clients of a subscription. sarama uses a connection for one request at a
// time: commits would wait behind a fetch, and a fetch behind a JoinGroup, whose response comes
// once all members have joined or were given up. So each has separate connections. They
// share the metadata, also with other subscriptions.
type clients struct {
	fetch *fetchClient
	side  sarama.Client // commits, and reads single records again
}

// The shared clients.
const (
	topicsClient  = iota // has the metadata of topics
	membersClient        // finds coordinators, and has the metadata of what the leader of a group assigns
)

// sharedConfigs returns the configurations of the shared clients.
func sharedConfigs(cfg *sarama.Config) []*sarama.Config {
	members := *cfg
	// It uses few topics. Otherwise sarama loads the metadata of all of them, at the start and from
	// time to time: with thousands 50 ms and megabytes, for each client.
	members.Metadata.Full = false
	members.Metadata.AllowAutoTopicCreation = false // the client with the topics creates what is missing
	// Callers that ask for the coordinator retry themselves. With retries inside each of
	// these, nothing would be reported for more than a minute.
	members.Metadata.Retry.Max = 0
	return []*sarama.Config{topicsClient: cfg, membersClient: &members}
}

func open(s *base, lease *connections.Lease) (*clients, error) {
	cfg, c := s.cfg, &clients{fetch: &fetchClient{base: s, offsets: map[positionKey]int64{}}, side: lease.Short()}
	c.fetch.turns.session(nil) // a Kafka in memory makes claims before it begins their session
	metadata := topicsClient
	if cfg.Topics.Patterns() {
		metadata = membersClient // to ask for a topic that was deleted must not create it
	}
	c.fetch.Client, c.fetch.side = lease.Client(metadata, cfg.Sarama), c.side
	if cfg.Group != "" {
		member := *cfg.Sarama
		// A JoinGroup gets its response once the slowest member is back, after up to the rebalance
		// timeout. A shorter read timeout never gets a response.
		member.Net.ReadTimeout = max(member.Net.ReadTimeout, member.Consumer.Group.Rebalance.Timeout+5*time.Second)
		c.fetch.member = lease.Client(membersClient, &member)
		// The heartbeat retries as often as this says, and the client that finds its
		// coordinator does not retry.
		group := *cfg.Sarama
		retries := group.Metadata.Retry.Max
		group.Metadata.Retry.Max = (retries+1)*(retries+1) - 1
		if t, pause := cfg.Transactions, group.Metadata.Retry.Backoff; t != nil && pause > 0 {
			// A session begins once the transactions of the partitions' last owners have ended.
			group.Metadata.Retry.Max = max(group.Metadata.Retry.Max, int(t.wait()/pause)+1)
		}
		c.fetch.config = &group
	}
	for _, topic := range cfg.Topics.Names {
		known := knows(c.fetch, topic)
		if !known || cfg.Group == "" { // without a group, all partitions there are now are read
			// This creates the topic, if the brokers do that.
			if err := c.fetch.RefreshMetadata(topic); !responded(err) {
				return nil, errors.Join(err, c.close())
			}
			known = knows(c.fetch, topic)
		}
		if known {
			if err := c.learn(cfg, topic); err != nil {
				return nil, errors.Join(err, c.close())
			}
		}
	}
	return c, nil
}

func knows(client sarama.Client, topic string) bool {
	topics, err := client.Topics()
	return err == nil && slices.Contains(topics, topic)
}

// responded reports whether a broker has responded, even if it refused the request.
func responded(err error) bool {
	var refused sarama.KError
	return err == nil || errors.As(err, &refused) && !errors.Is(err, sarama.ErrSASLAuthenticationFailed)
}

// learn makes the client that finds coordinators load the metadata of one topic, which
// exists. With them come the addresses of all brokers: without these, a client that loses
// its broker has only the configured ones to turn to. Both are refreshed from then on.
func (c *clients) learn(cfg *Config, topic string) error {
	member := c.fetch.member
	if member == nil {
		return nil
	}
	if topics, err := member.Topics(); err == nil && len(topics) > 0 {
		return nil
	}
	retry := &cfg.Sarama.Metadata.Retry
	for attempt := 0; ; attempt++ {
		err := member.RefreshMetadata(topic)
		if responded(err) {
			return nil // what the client does not know of the topic now, it asks for when needed
		}
		if attempt >= retry.Max {
			return err
		}
		time.Sleep(retry.Backoff) // as sarama does, with the retries that were taken away above
	}
}

// probe asks the brokers whether partitions can be fetched from an offset on. See health.
func (c *clients) probe(from map[place]int64) map[place]error {
	errs, ask := map[place]error{}, map[string]map[int32]reread.Position{}
	began := time.Now()
	for at, offset := range from {
		if time.Since(began) > time.Second {
			break // each partition without a leader takes long
		}
		leader, epoch, err := c.fetch.Client.LeaderAndEpoch(at.topic, at.partition)
		if err != nil {
			errs[at] = err
			continue
		}
		if ask[at.topic] == nil {
			ask[at.topic] = map[int32]reread.Position{}
		}
		ask[at.topic][at.partition] = reread.Position{Offset: offset, Leader: leader.ID(), Epoch: epoch}
	}
	for topic, positions := range ask {
		for p, err := range reread.Probe(c.side, topic, positions) {
			errs[place{topic, p}] = err
		}
	}
	if c.side.Closed() || c.fetch.Closed() {
		return nil
	}
	return errs
}

// close closes the subscription's own connections.
func (c *clients) close() error {
	var errs []error
	for _, client := range []sarama.Client{c.fetch.Client, c.fetch.member} {
		if client != nil {
			errs = append(errs, client.Close())
		}
	}
	return errors.Join(errs...)
}

// fetchClient is sarama's only client, as far as sarama knows. It talks to the coordinator
// over another one.
//
// It also remembers the results of GetOffset. sarama resolves "newest" and "oldest" inside
// ConsumePartition and does not report the result. Asking the broker again later may return
// an offset after records that were fetched already.
type fetchClient struct {
	sarama.Client
	base   *base
	member sarama.Client // nil without a group
	side   sarama.Client
	config *sarama.Config             // the group's; nil without one
	watch  atomic.Pointer[topicWatch] // while partitions are read
	turns  turns

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

// endRetries has the group try again without pauses once ctx ends, so that its retries soon do, too: while sarama waits
// for an open transaction, it notices nothing else.
func (c *fetchClient) endRetries(ctx context.Context) {
	retry := &c.config.Metadata.Retry
	pause, fixed := retry.BackoffFunc, retry.Backoff
	if pause == nil {
		pause = func(int, int) time.Duration { return fixed }
	}
	retry.BackoffFunc = wait.Unless(func() bool { return ctx.Err() != nil }, pause)
}

func (c *fetchClient) Coordinator(group string) (*sarama.Broker, error) {
	return c.member.Coordinator(group)
}

func (c *fetchClient) RefreshCoordinator(group string) error {
	return c.member.RefreshCoordinator(group)
}

// LeaderAndEpoch is called by sarama when it begins to fetch a partition, after each fetch
// that succeeded, before it sends the next one, and before each retry.
func (c *fetchClient) LeaderAndEpoch(topic string, partition int32) (*sarama.Broker, int32, error) {
	leader, epoch, err := c.Client.LeaderAndEpoch(topic, partition)
	if err == nil {
		at := place{topic, partition}
		c.base.fetched(at)
		c.turns.wait(at, leader.ID())
	}
	return leader, epoch, err
}

// RefreshMetadata is called by sarama for the topics that are consumed, and by the leader of
// the group for those of all members. A missing topic of other members must not keep the
// leader from assigning the rest, or the whole group would stand still.
func (c *fetchClient) RefreshMetadata(topics ...string) error {
	if c.member == nil || !slices.ContainsFunc(topics, func(t string) bool { return !c.base.cfg.Topics.Has(t) }) {
		err := c.refresh(topics)
		if watch := c.watch.Load(); err == nil && watch != nil { // perhaps after an interrupted fetch
			err = watch.refreshed(topics)
		}
		return err
	}
	err := c.member.RefreshMetadata(topics...) // member does not retry: the group waits
	if errors.Is(err, sarama.ErrUnknownTopicOrPartition) || errors.Is(err, sarama.ErrLeaderNotAvailable) {
		return nil // Partitions shows which topic is missing
	}
	return err
}

// Partitions returns none for a topic that does not exist, for the same reason.
func (c *fetchClient) Partitions(topic string) ([]int32, error) {
	if c.member == nil {
		return c.Client.Partitions(topic)
	}
	client := c.member
	if c.base.cfg.Topics.Has(topic) {
		client = c.Client
	}
	partitions, err := client.Partitions(topic)
	if errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		return nil, nil
	}
	return partitions, err
}

// GetOffset is called by sarama when it begins a partition, before LeaderAndEpoch.
func (c *fetchClient) GetOffset(topic string, partition int32, which int64) (int64, error) {
	// Not over the client that fetches: partitions start one after the other, and each would wait for the fetch of those before.
	offset, err := c.side.GetOffset(topic, partition, which)
	if err == nil {
		c.turns.start(place{topic, partition})
		c.mu.Lock()
		c.offsets[positionKey{topic, partition, which}] = offset
		c.mu.Unlock()
	}
	return offset, err
}

// position returns what sarama resolved for a partition that it consumes.
func (c *fetchClient) position(topic string, partition int32, which int64) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	offset, ok := c.offsets[positionKey{topic, partition, which}]
	return offset, ok
}
