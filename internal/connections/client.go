package connections

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/IBM/sarama"
)

// Client is a sarama client that shares the metadata of another one: topics, leaders, coordinators,
// addresses. It reaches brokers over other connections.
type Client struct {
	sarama.Client // the one with the metadata
	config        *sarama.Config
	brokers       *brokers
	shared        bool         // the brokers are not closed with the client
	closed        atomic.Bool  // set by Close
	asking        atomic.Int32 // requests for offsets under way
}

// brokers has connections to brokers.
type brokers struct {
	config *sarama.Config

	mu     sync.Mutex
	byID   map[int32]*sarama.Broker
	closed bool
}

func newBrokers(config *sarama.Config) *brokers {
	return &brokers{config: config, byID: map[int32]*sarama.Broker{}}
}

// to returns the connection to a broker, which it opens in the background.
func (b *brokers) to(known *sarama.Broker) (*sarama.Broker, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, sarama.ErrClosedClient
	}
	own := b.own(known)
	_ = own.Open(b.config) // an error says that it is open
	return own, nil
}

func (b *brokers) all(known []*sarama.Broker) (all []*sarama.Broker) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	for _, k := range known {
		all = append(all, b.own(k))
	}
	return all
}

// own returns the connection to a broker, which need not be open. The caller holds mu.
func (b *brokers) own(known *sarama.Broker) *sarama.Broker {
	own := b.byID[known.ID()]
	if own != nil && own.Addr() != known.Addr() { // it has moved
		closeLater(own)
		own = nil
	}
	if own == nil {
		own = withID(known)
		b.byID[known.ID()] = own
	}
	return own
}

func (b *brokers) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, own := range b.byID {
		closeLater(own)
	}
}

// closeLater closes a connection once no request is under way. As with sarama's own clients nobody waits for
// that: whoever may not wait for a request cuts the connection.
func closeLater(b *sarama.Broker) {
	go func() { _ = b.Close() }()
}

// withID returns an unconnected broker with the same id, which sarama's metrics name, and address.
func withID(known *sarama.Broker) *sarama.Broker {
	var response sarama.MetadataResponse
	response.AddBroker(known.Addr(), known.ID())
	return response.Brokers[0]
}

func (c *Client) over(known *sarama.Broker, err error) (*sarama.Broker, error) {
	if err != nil {
		return nil, err
	}
	if c.closed.Load() {
		return nil, sarama.ErrClosedClient
	}
	return c.brokers.to(known)
}

// Config returns the user's configuration, with which the same connections are made.
func (c *Client) Config() *sarama.Config { return c.config }

// Brokers returns the brokers of the cluster. They need not be connected.
func (c *Client) Brokers() []*sarama.Broker { return c.brokers.all(c.Client.Brokers()) }

// Broker returns a broker that is known.
func (c *Client) Broker(id int32) (*sarama.Broker, error) {
	for _, known := range c.Client.Brokers() { // Client.Broker would connect
		if known.ID() == id {
			return c.over(known, nil)
		}
	}
	return nil, sarama.ErrBrokerNotFound
}

// Leader returns the leader of a partition.
func (c *Client) Leader(topic string, partition int32) (*sarama.Broker, error) {
	return c.over(c.Client.Leader(topic, partition))
}

// LeaderAndEpoch returns the leader of a partition and its epoch.
func (c *Client) LeaderAndEpoch(topic string, partition int32) (*sarama.Broker, int32, error) {
	known, epoch, err := c.Client.LeaderAndEpoch(topic, partition)
	leader, err := c.over(known, err)
	if err != nil {
		return nil, -1, err
	}
	return leader, epoch, nil
}

// Coordinator returns the coordinator of a group.
func (c *Client) Coordinator(group string) (*sarama.Broker, error) {
	if c.closed.Load() {
		return nil, sarama.ErrClosedClient
	}
	var coordinator *sarama.Broker
	err := c.ask(func() (err error) {
		coordinator, err = c.Client.Coordinator(group)
		return err
	})
	return c.over(coordinator, err)
}

// RefreshCoordinator asks for the coordinator of a group.
func (c *Client) RefreshCoordinator(group string) error {
	if c.closed.Load() {
		return sarama.ErrClosedClient
	}
	return c.ask(func() error { return c.Client.RefreshCoordinator(group) })
}

// RefreshMetadata asks for the metadata of topics.
func (c *Client) RefreshMetadata(topics ...string) error {
	if c.closed.Load() {
		return sarama.ErrClosedClient
	}
	return c.ask(func() error { return c.Client.RefreshMetadata(topics...) })
}

// ask asks once more if the shared client does not try again itself: its connections may have broken
// while nobody used them, which the first request shows.
func (c *Client) ask(ask func() error) error {
	err := ask()
	if errors.Is(err, sarama.ErrOutOfBrokers) && c.Client.Config().Metadata.Retry.Max == 0 {
		return ask()
	}
	return err
}

// LeastLoadedBroker returns any broker, or nil. That is not one of the shared client's connections: who finds
// one of those silent would keep it from everybody's metadata.
func (c *Client) LeastLoadedBroker() *sarama.Broker {
	known := c.Client.Brokers()
	if len(known) == 0 {
		if c.closed.Load() {
			return nil
		}
		return c.Client.LeastLoadedBroker()
	}
	own, err := c.over(known[rand.IntN(len(known))], nil)
	if err != nil {
		return nil
	}
	return own
}

// GetOffset returns the offset of a partition at a time, or one of its ends.
func (c *Client) GetOffset(topic string, partition int32, at int64) (int64, error) {
	c.asking.Add(1)
	defer c.asking.Add(-1)
	offset, err := c.offset(topic, partition, at)
	if err == nil {
		return offset, nil
	}
	if err := c.RefreshMetadata(topic); err != nil {
		return -1, err
	}
	return c.offset(topic, partition, at)
}

func (c *Client) offset(topic string, partition int32, at int64) (int64, error) {
	leader, err := c.Leader(topic, partition)
	if err != nil {
		return -1, err
	}
	request := sarama.NewOffsetRequest(c.Config().Version)
	request.AddBlock(topic, partition, at, 1)
	response, err := leader.GetAvailableOffsets(request)
	if err != nil {
		_ = leader.Close()
		return -1, err
	}
	switch block := response.GetBlock(topic, partition); {
	case block == nil:
		_ = leader.Close()
		return -1, sarama.ErrIncompleteResponse
	case block.Err != sarama.ErrNoError:
		return -1, block.Err
	case len(block.Offsets) != 1:
		return -1, sarama.ErrOffsetOutOfRange
	default:
		return block.Offsets[0], nil
	}
}

// Close closes the client's own connections, and not the shared client.
func (c *Client) Close() error {
	if c.closed.Swap(true) {
		return sarama.ErrClosedClient
	}
	if !c.shared {
		c.brokers.close()
	}
	return nil
}

// Closed reports whether the client was closed.
func (c *Client) Closed() bool { return c.closed.Load() || c.Client.Closed() }
