package group

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	wmkafka "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/clitest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// bed is a topic with one partition, and a group.
type bed struct {
	t            testing.TB
	topic, group string
}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t, topic: brokertest.Topic(t), group: brokertest.Group(t)}
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), b.topic, 1))
	return b
}

// put writes records that have their offsets as keys and values, and a header.
func (b *bed) put(from, to int) {
	b.t.Helper()
	var records []brokertest.Record
	for i := from; i < to; i++ {
		records = append(records, brokertest.Record{
			Key: fmt.Append(nil, i), Value: fmt.Append(nil, i), Headers: []sarama.RecordHeader{{Key: []byte("h"), Value: []byte("v")}},
		})
	}
	_, err := brokertest.Produce(testkit.Shared.Addrs(), b.topic, 0, records...)
	testkit.Check(b.t, err)
}

func (b *bed) env(out, errs *bytes.Buffer) *cli.Env {
	return cli.NewEnv(func(string) string { return strings.Join(testkit.Shared.Addrs(), ",") }, strings.NewReader(""), out, errs)
}

// want runs a command for the group, and wants the exit code and the texts.
func (b *bed) want(code int, texts []string, args ...string) clitest.Result {
	b.t.Helper()
	if !slices.Contains(args, "--group") {
		args = append(args, "--group", b.group)
	}
	r := clitest.Run(b.t.Context(), testkit.Shared.Addrs(), strings.NewReader(""), args, Status, Skip)
	r.Want(b.t, code, texts...)
	return r
}

func (b *bed) skip(code int, texts []string, offset int, more ...string) clitest.Result {
	b.t.Helper()
	return b.want(code, texts, append([]string{"skip", "--topic", b.topic, "--partition", "0", "--offset", fmt.Sprint(offset)}, more...)...)
}

// service is a member that nacks some records for long, and acks the others.
type service struct {
	router *message.Router
	ended  chan struct{}

	mu      sync.Mutex
	handled []string
}

var errHeld = errors.New("no such customer")

func (b *bed) service(held ...string) *service {
	b.t.Helper()
	cfg := wmkafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Consumer.MaxWaitTime = 100 * time.Millisecond
	cfg.ClientID = "billing-app"
	sub, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
		Kafka:    wmkafka.SubscriberConfig{Brokers: testkit.Shared.Addrs(), ConsumerGroup: b.group, OverwriteSaramaConfig: cfg},
		Ordering: ackpolicy.OrderByKey, MaxDeliveries: 100, MaxAge: 24 * time.Hour, DeadLetter: ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}},
		CommitInterval: 50 * time.Millisecond, Backoff: func(int, error) time.Duration { return time.Hour },
	}, watermill.NopLogger{})
	testkit.Check(b.t, err)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	testkit.Check(b.t, err)
	s := &service{router: router, ended: make(chan struct{})}
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	router.AddConsumerHandler("charge", b.topic, sub, func(msg *message.Message) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.handled = append(s.handled, string(msg.Payload))
		if slices.Contains(held, string(msg.Payload)) {
			return errHeld
		}
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(s.ended)
		if err := router.Run(ctx); err != nil {
			b.t.Errorf("the router: %v", err)
		}
	}()
	b.t.Cleanup(func() {
		cancel()
		<-s.ended
	})
	return s
}

func (s *service) stop() {
	_ = s.router.Close()
	<-s.ended
}

func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.handled)
}

// values returns what was handled, in order of offset.
func (s *service) values() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.handled))
}
