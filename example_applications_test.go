package ackpolicy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/sony/gobreaker"
	"github.com/xdg-go/scram"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// The code that docs/middlewares.md and docs/operations.md show is in here: TestPageShowsExamples sees to it. TestSASLAndTLS runs a copy of secure.

// A signal is no failure: it is not retried.
func ExampleIsSignal_retry() {
	retry := middleware.Retry{
		MaxRetries:          3,
		InitialInterval:     100 * time.Millisecond,
		MaxInterval:         time.Second,
		Multiplier:          2,
		ResetContextOnRetry: true, // else the second try has the ended context of a Timeout inside
		ShouldRetry:         func(p middleware.RetryParams) bool { return !ackpolicy.IsSignal(p.Err) },
	}

	calls := 0
	h := ackpolicy.NackOnError.Middleware(retry.Middleware(func(*message.Message) ([]*message.Message, error) {
		calls++
		return nil, fmt.Errorf("order 7: %w", ackpolicy.ErrReject)
	}))
	_, err := h(message.NewMessage("7", nil))
	fmt.Println("calls:", calls, "error:", err)
	// Output: calls: 1 error: <nil>
}

// A failure goes to the poison queue; a signal does not.
func ExampleIsSignal_poisonQueue() {
	publisher := printer{}
	poison, err := middleware.PoisonQueueWithFilter(publisher, "poison", func(err error) bool { return !ackpolicy.IsSignal(err) })
	if err != nil {
		panic(err)
	}

	for _, end := range []error{ackpolicy.ErrNack, errors.New("no such customer")} {
		msg := message.NewMessage("7", nil)
		h := ackpolicy.NackOnError.Middleware(poison(func(*message.Message) ([]*message.Message, error) { return nil, end }))
		_, err = h(msg)
		fmt.Println("error:", err, "nacked:", !msg.Ack())
	}
	// Output:
	// error: <nil> nacked: true
	// published to poison: no such customer
	// error: <nil> nacked: false
}

type printer struct{}

func (printer) Publish(topic string, messages ...*message.Message) error {
	fmt.Printf("published to %s: %s\n", topic, messages[0].Metadata.Get(middleware.ReasonForPoisonedKey))
	return nil
}

func (printer) Close() error { return nil }

// Signals do not open the breaker. While it is open, records come again, whatever the policy.
func ExampleIsSignal_circuitBreaker() {
	breaker := middleware.NewCircuitBreaker(gobreaker.Settings{
		IsSuccessful: func(err error) bool { return err == nil || ackpolicy.IsSignal(err) },
	})
	policy := ackpolicy.Middleware{
		Policy:   ackpolicy.RejectOnError,
		Classify: func(err error) (ackpolicy.Policy, bool) { return ackpolicy.NackOnError, unavailable(err) },
	}

	end := ackpolicy.ErrReject
	h := policy.Middleware(breaker.Middleware(func(*message.Message) ([]*message.Message, error) { return nil, end }))
	for i := range 20 {
		if i == 10 {
			end = errors.New("database is down")
		}
		msg := message.NewMessage("7", nil)
		if _, err := h(msg); unavailable(err) {
			fmt.Println("open after", i, "records; acked:", !msg.Nack())
			break
		}
	}
	// Output: open after 16 records; acked: false
}

// unavailable reports whether an error is the breaker's own: the handler was not called.
func unavailable(err error) bool {
	return errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests)
}

// An error that is none.
func ExampleMiddleware_classify() {
	errDuplicate := errors.New("duplicate order")
	policy := ackpolicy.Middleware{
		Policy:   ackpolicy.NackOnError,
		Classify: func(err error) (ackpolicy.Policy, bool) { return ackpolicy.Ack, errors.Is(err, errDuplicate) },
	}

	msg := message.NewMessage("7", nil)
	h := policy.Middleware(func(*message.Message) ([]*message.Message, error) {
		return nil, fmt.Errorf("order 7: %w", errDuplicate)
	})
	_, err := h(msg)
	fmt.Println("error:", err, "acked:", !msg.Nack())
	// Output: error: order 7: duplicate order acked: true
}

// A record that comes again is no duplicate.
func ExampleFromContext_deduplicator() {
	keys, err := middleware.NewMapExpiringKeyRepository(time.Minute)
	if err != nil {
		panic(err)
	}
	deduplicator := middleware.Deduplicator{
		KeyFactory: middleware.NewMessageHasherSHA256(1 << 20),
		Repository: byRecord{keys},
		Timeout:    time.Second,
	}

	calls := 0
	h := deduplicator.Middleware(ackpolicy.NackOnError.Middleware(func(*message.Message) ([]*message.Message, error) {
		calls++
		return nil, nil
	}))
	for _, payload := range []string{"a", "b", "a"} {
		if _, err := h(message.NewMessage("", []byte(payload))); err != nil {
			panic(err)
		}
	}
	fmt.Println("calls:", calls)
	// Output: calls: 2
}

// mailbox prints the letters that it gets.
type mailbox struct{ stored chan struct{} }

func (m mailbox) Send(_ context.Context, record *sarama.ConsumerMessage, letter ackpolicy.Letter) error {
	fmt.Printf("%s: %v, %d attempts\n", record.Value, letter.Reason, letter.Attempts)
	close(m.stored)
	return nil
}

// A handler with settings of its own.
func ExampleMiddleware_settings() {
	config, topic, stop := exampleTopic("mail 1")
	defer stop()
	router := must(message.NewRouter(message.RouterConfig{}, nil))
	subscriber := must(ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{Kafka: config}, nil))
	sendMail := func(*message.Message) error { return errors.New("no such address") }
	mailLetters := mailbox{make(chan struct{})}

	h := router.AddConsumerHandler("mail", topic, subscriber, sendMail)
	h.AddMiddleware(ackpolicy.Middleware{Policy: ackpolicy.NackOnError, MaxDeliveries: 3, DeadLetter: mailLetters}.Middleware)

	go func() {
		<-mailLetters.stored
		_ = router.Close()
	}()
	if err := router.Run(context.Background()); err != nil {
		panic(err)
	}
	// Output: mail 1: no such address, 3 attempts
}

// byRecord lets a record that comes again pass: a duplicate is the same key at another offset.
type byRecord struct {
	middleware.ExpiringKeyRepository
}

func (r byRecord) IsDuplicate(ctx context.Context, key string) (bool, error) {
	seen, err := r.ExpiringKeyRepository.IsDuplicate(ctx, key)
	d, ok := ackpolicy.FromContext(ctx)
	if err != nil || !ok || d.Offset() < 0 {
		return seen, err
	}
	again, err := r.ExpiringKeyRepository.IsDuplicate(ctx, fmt.Sprintf("%s@%s/%d/%d", key, d.Topic(), d.Partition(), d.Offset()))
	return seen && !again, err
}

// secure connects as the user, with SCRAM over TLS, to brokers whose certificates are of the CA in the file.
func secure(cfg *sarama.Config, caFile, user, password string) error {
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool() // leave RootCAs out if the CA is one that the system trusts
	if !roots.AppendCertsFromPEM(ca) {
		return errors.New(caFile + " holds no certificate")
	}
	cfg.Net.TLS.Enable = true
	cfg.Net.TLS.Config = &tls.Config{RootCAs: roots}
	cfg.Net.SASL.Enable = true
	cfg.Net.SASL.User, cfg.Net.SASL.Password = user, password
	cfg.Net.SASL.Mechanism = sarama.SASLTypeSCRAMSHA512 // with SASLTypePlaintext the next line is not needed
	cfg.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{} }
	return nil
}

// scramClient is github.com/xdg-go/scram as sarama wants it.
type scramClient struct{ *scram.ClientConversation }

func (c *scramClient) Begin(user, password, authzID string) error {
	client, err := scram.SHA512.NewClient(user, password, authzID)
	if err == nil {
		c.ClientConversation = client.NewConversation()
	}
	return err
}

func Example_secure() {
	cfg := kafka.DefaultSaramaSubscriberConfig()
	if err := secure(cfg, "ca.pem", "app", os.Getenv("KAFKA_PASSWORD")); err != nil {
		panic(err)
	}
	config := ackpolicy.SubscriberConfig{Kafka: kafka.SubscriberConfig{
		Brokers:               []string{"kafka-1:9093", "kafka-2:9093"},
		ConsumerGroup:         "billing",
		Unmarshaler:           kafka.DefaultMarshaler{},
		OverwriteSaramaConfig: cfg,
	}}
	subscriber, err := ackpolicy.NewSubscriber(config, watermill.NewSlogLogger(nil))
	if err != nil {
		panic(err)
	}
	defer subscriber.Close()
}

// connections are those of the whole process.
var connections ackpolicy.Connections

// newSubscriber returns a Subscriber that shares its connections with all others.
func newSubscriber(config ackpolicy.SubscriberConfig, logger watermill.LoggerAdapter) (*ackpolicy.Subscriber, error) {
	config.Connections = &connections
	return ackpolicy.NewSubscriber(config, logger)
}

// Subscribers of one process can share their connections and limits, as those of the same Subscriber do.
func ExampleConnections() {
	for _, group := range []string{"billing", "shipping"} {
		config := ackpolicy.SubscriberConfig{}
		config.Kafka.Brokers = []string{"localhost:9092"}
		config.Kafka.ConsumerGroup = group
		if _, err := newSubscriber(config, nil); err != nil {
			panic(err)
		}
	}
}

// One handler reads every topic that the pattern matches, also those that are created later.
func ExampleSubscriber_Subscribe_pattern() {
	config := ackpolicy.SubscriberConfig{}
	config.Kafka.Brokers = []string{"localhost:9092"}
	config.Kafka.ConsumerGroup = "audit"
	config.Kafka.OverwriteSaramaConfig = kafka.DefaultSaramaSubscriberConfig()
	config.Kafka.OverwriteSaramaConfig.Metadata.RefreshFrequency = time.Minute // how soon it finds new topics
	subscriber, err := ackpolicy.NewSubscriber(config, nil)
	if err != nil {
		panic(err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	if err != nil {
		panic(err)
	}
	router.AddConsumerHandler("audit", "orders.*, invoices", subscriber, func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		fmt.Println(d.Topic(), msg.UUID)
		return nil
	})
}
