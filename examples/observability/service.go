package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyprom"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

const topic = "payments"

// The records that make trouble, one in each partition.
const (
	hangs   = iota // its handler does not return
	fails          // the payment provider refuses it each time
	refused        // it is rejected, and its dead letter cannot be stored
	partitions
)

var (
	errProvider = errors.New(`payment provider: 422 unknown currency "XTS"`)
	errNoSense  = errors.New("an amount below zero")
	errDown     = errors.New("the archive is down")
)

// archive is a dead letter destination of the application's own.
type archive struct {
	down  atomic.Bool
	mu    sync.Mutex
	taken []ackpolicy.Letter
}

func (a *archive) Send(_ context.Context, _ *sarama.ConsumerMessage, letter ackpolicy.Letter) error {
	if a.down.Load() {
		return errDown
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken = append(a.taken, letter)
	return nil
}

func (a *archive) letters() []ackpolicy.Letter {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]ackpolicy.Letter(nil), a.taken...)
}

type service struct {
	router     *message.Router
	subscriber *ackpolicy.Subscriber
	registry   *prometheus.Registry
	page       *ackpolicyweb.Handler
	archive    archive
	release    chan struct{} // ends the handler that hangs
	fix        func()
}

func newService(brokers []string, logger watermill.LoggerAdapter) (*service, error) {
	if err := brokertest.CreateTopic(brokers, topic, partitions); err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
		return nil, err
	}
	for p := range int32(partitions) {
		records := []brokertest.Record{brokertest.KeyValue("eve", "trouble"), brokertest.KeyValue("eve", "10"), brokertest.KeyValue("bob", "20")}
		if _, err := brokertest.Produce(brokers, topic, p, records...); err != nil {
			return nil, err
		}
	}

	s := &service{registry: prometheus.NewRegistry(), release: make(chan struct{})}
	s.archive.down.Store(true)
	s.fix = sync.OnceFunc(func() {
		close(s.release)
		s.archive.down.Store(false)
	})
	metrics := ackpolicyprom.New(ackpolicyprom.Options{PerPartition: true})
	if err := s.registry.Register(metrics); err != nil {
		return nil, err
	}
	timeline := &ackpolicyweb.Timeline{}
	kafkaConfig := kafka.DefaultSaramaSubscriberConfig()
	kafkaConfig.Consumer.Offsets.Initial = sarama.OffsetOldest
	var err error
	s.subscriber, err = ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
		Kafka:       kafka.SubscriberConfig{Brokers: brokers, ConsumerGroup: "billing", OverwriteSaramaConfig: kafkaConfig},
		Ordering:    ackpolicy.OrderByKey,
		Backoff:     ackpolicy.ExponentialBackoff{}.Delay,
		HandlerSlow: 2 * time.Second,
		DeadLetter:  &s.archive,
		Hooks:       ackpolicy.JoinHooks(metrics.Hooks(), timeline.Hooks()),
	}, logger)
	if err != nil {
		return nil, err
	}
	metrics.Observe(s.subscriber)
	s.page = ackpolicyweb.New(ackpolicyweb.Options{
		Subscribers:  []ackpolicyweb.Subscriber{s.subscriber},
		AllowActions: func(*http.Request) string { return "whoever is on call" }, // a real one asks the application's login
		ShowKeys:     true,
		Timeline:     timeline,
	})

	if s.router, err = message.NewRouter(message.RouterConfig{}, logger); err != nil {
		return nil, err
	}
	s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.router.AddConsumerHandler("charge", topic, s.subscriber, s.charge)
	return s, nil
}

func (s *service) charge(msg *message.Message) error {
	d, _ := ackpolicy.FromMessage(msg)
	if string(msg.Payload) != "trouble" {
		return nil
	}
	switch d.Partition() {
	case hangs:
		select {
		case <-s.release:
			return nil
		case <-msg.Context().Done():
			return msg.Context().Err()
		}
	case fails:
		return errProvider
	default:
		return ackpolicy.RejectWith(errNoSense)
	}
}

// start runs the Router. What it returned comes through the channel.
func (s *service) start() (<-chan error, error) {
	stopped := make(chan error, 1)
	go func() { stopped <- s.router.Run(context.Background()) }()
	select {
	case <-s.router.Running():
		return stopped, nil
	case err := <-stopped:
		return nil, fmt.Errorf("the router: %w", err)
	}
}

func (s *service) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.Handle("/livez", s.subscriber.LivezHandler())
	mux.Handle("/readyz", s.subscriber.ReadyzHandler())
	mux.Handle("/ackpolicy/", s.page)
	return mux
}
