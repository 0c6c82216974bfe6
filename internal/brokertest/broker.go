package brokertest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// TB is what this package needs of a testing.TB, which it does not import: examples use it, too.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Name() string
}

// Broker is a Kafka cluster: the one that KAFKA_BROKERS names, or one in this process.
type Broker struct {
	addrs []string
	fake  *kfake.Cluster
}

// Start returns the broker that KAFKA_BROKERS (host:port, comma separated) names, or else starts one in this process.
// The options only apply to that.
func Start(opts ...kfake.Opt) (*Broker, error) {
	if env := os.Getenv("KAFKA_BROKERS"); env != "" {
		return &Broker{addrs: strings.Split(env, ",")}, nil
	}
	return StartFake(opts...)
}

// StartFake starts a broker in this process, whatever KAFKA_BROKERS says.
func StartFake(opts ...kfake.Opt) (*Broker, error) {
	fake, err := kfake.NewCluster(append([]kfake.Opt{
		kfake.NumBrokers(1),
		kfake.DefaultNumPartitions(1),
		kfake.AllowAutoTopicCreation(),
		kfake.GroupMinSessionTimeout(time.Second),
	}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("brokertest: starting kfake: %w", err)
	}
	return &Broker{addrs: fake.ListenAddrs(), fake: fake}, nil
}

// Addrs returns the addresses to bootstrap from.
func (b *Broker) Addrs() []string { return b.addrs }

// Real reports whether this is a broker outside of this process.
func (b *Broker) Real() bool { return b.fake == nil }

// Kfake returns the cluster in this process, nil if the broker is a real one.
func (b *Broker) Kfake() *kfake.Cluster { return b.fake }

// Close stops the broker, unless it is a real one.
func (b *Broker) Close() {
	if b.fake != nil {
		b.fake.Close()
	}
}

// New is [Start] for a test, which closes the broker when it ends.
func New(tb TB, opts ...kfake.Opt) *Broker {
	tb.Helper()
	return forTest(tb, Start, opts)
}

// NewFake is [StartFake] for a test: for one that injects faults.
func NewFake(tb TB, opts ...kfake.Opt) *Broker {
	tb.Helper()
	return forTest(tb, StartFake, opts)
}

func forTest(tb TB, start func(...kfake.Opt) (*Broker, error), opts []kfake.Opt) *Broker {
	tb.Helper()
	b, err := start(opts...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(b.Close)
	return b
}

// Brokers returns the addresses of a broker for the test: see [New].
func Brokers(tb TB, opts ...kfake.Opt) []string {
	tb.Helper()
	return New(tb, opts...).Addrs()
}

// Topic returns a topic name that no other test, and no earlier run, uses.
func Topic(tb TB) string { return unique(tb, "topic") }

// Group is [Topic] for consumer groups.
func Group(tb TB) string { return unique(tb, "group") }

func unique(tb TB, kind string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-':
			return r
		}
		return '-' // Kafka takes dots and underscores for the same character
	}, tb.Name())
	return fmt.Sprintf("%.150s-%s-%08x", name, kind, rand.Uint32())
}
