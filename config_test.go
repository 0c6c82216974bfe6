package ackpolicy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

func TestParsePolicy(t *testing.T) {
	t.Parallel()
	for want, names := range map[ackpolicy.Policy][]string{
		ackpolicy.AckFirst:      {"ack_first", "AckFirst", "ACK_FIRST", "ack-first"},
		ackpolicy.Ack:           {"ack", "Ack", "ACK"},
		ackpolicy.RejectOnError: {"reject_on_error", "RejectOnError", "REJECT_ON_ERROR"},
		ackpolicy.NackOnError:   {"nack_on_error", "NackOnError", "NACK_ON_ERROR"},
		ackpolicy.Manual:        {"manual", "Manual", "MANUAL"},
	} {
		if want.String() != names[0] {
			t.Errorf("String: %q, want %q", want, names[0])
		}
		for _, name := range names {
			if got, err := ackpolicy.ParsePolicy(name); err != nil || got != want {
				t.Errorf("ParsePolicy(%q): %v, %v", name, got, err)
			}
		}
	}
	for _, name := range []string{"", "nack", "auto", "nack_on_errors", "Policy(1)"} {
		_, err := ackpolicy.ParsePolicy(name)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) || !strings.Contains(err.Error(), "nack_on_error") {
			t.Errorf("ParsePolicy(%q): want an error with what would do, got %v", name, err)
		}
	}
	if zero := ackpolicy.Policy(0); zero != ackpolicy.AckFirst {
		t.Errorf("the zero value is %v", zero)
	}
}

func TestPolicyAsText(t *testing.T) {
	t.Parallel()
	type config struct{ Policies map[string]ackpolicy.Policy }
	in := config{map[string]ackpolicy.Policy{}}
	for _, policy := range policies {
		in.Policies[policy.String()] = policy
	}
	text, err := json.Marshal(in)
	check(t, err)
	var out config
	check(t, json.Unmarshal(text, &out))
	for name, policy := range in.Policies {
		if out.Policies[name] != policy {
			t.Errorf("%s became %v in %s", name, out.Policies[name], text)
		}
	}
	if _, err := ackpolicy.Policy(99).MarshalText(); err == nil {
		t.Error("MarshalText of no policy: no error")
	}
	policy := ackpolicy.Manual
	if err := policy.UnmarshalText([]byte("nonsense")); err == nil || policy != ackpolicy.Manual {
		t.Errorf("UnmarshalText of nonsense: %v, %v", policy, err)
	}
}

// wrong are configurations with one mistake, and what the error has to name: the field and the value.
func wrong() map[string]struct {
	change change
	names  []string
} {
	type mistake = struct {
		change change
		names  []string
	}
	return map[string]mistake{
		"brokers":            {func(c *ackpolicy.SubscriberConfig) { c.Kafka.Brokers = nil }, []string{"Kafka.Brokers", "missing brokers"}},
		"ordering":           {func(c *ackpolicy.SubscriberConfig) { c.Ordering = 77 }, []string{"Ordering", "77"}},
		"in flight":          {func(c *ackpolicy.SubscriberConfig) { c.MaxInFlight = -11 }, []string{"MaxInFlight", "-11"}},
		"in flight total":    {func(c *ackpolicy.SubscriberConfig) { c.MaxInFlightTotal = -12 }, []string{"MaxInFlightTotal", "-12"}},
		"uncommitted":        {func(c *ackpolicy.SubscriberConfig) { c.MaxUncommitted = -13 }, []string{"MaxUncommitted", "-13", "Unlimited"}},
		"bytes":              {func(c *ackpolicy.SubscriberConfig) { c.MaxBufferedBytes = -14 }, []string{"MaxBufferedBytes", "-14"}},
		"commit interval":    {func(c *ackpolicy.SubscriberConfig) { c.CommitInterval = -15 }, []string{"CommitInterval", "-15"}},
		"drain timeout":      {func(c *ackpolicy.SubscriberConfig) { c.DrainTimeout = -16 }, []string{"DrainTimeout", "-16"}},
		"nack sleep":         {func(c *ackpolicy.SubscriberConfig) { c.Kafka.NackResendSleep = -17 }, []string{"Kafka.NackResendSleep", "-17"}},
		"reconnect sleep":    {func(c *ackpolicy.SubscriberConfig) { c.Kafka.ReconnectRetrySleep = -18 }, []string{"Kafka.ReconnectRetrySleep", "-18"}},
		"sarama's own check": {func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.Consumer.Fetch.Min = -19 }, []string{"OverwriteSaramaConfig", "Consumer.Fetch.Min"}},
	}
}

// Each mistake is named, and all of them in one error.
func TestConfigErrors(t *testing.T) {
	t.Parallel()
	sound := func() ackpolicy.SubscriberConfig {
		return ackpolicy.SubscriberConfig{Kafka: kafka.SubscriberConfig{
			Brokers:               []string{"localhost:9092"},
			ConsumerGroup:         "group",
			OverwriteSaramaConfig: kafka.DefaultSaramaSubscriberConfig(),
		}}
	}
	test := func(name string, cfg ackpolicy.SubscriberConfig, words []string) {
		_, err := ackpolicy.NewSubscriber(cfg, nil)
		if err == nil {
			t.Errorf("%s: no error", name)
			return
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q is not in the error:\n%v", name, word, err)
			}
		}
	}
	all, words := sound(), []string(nil)
	for name, w := range wrong() {
		one := sound()
		w.change(&one)
		test(name, one, w.names)
		w.change(&all)
		words = append(words, w.names...)
	}
	test("all", all, words)

	parallel := sound()
	parallel.MaxInFlight = 4
	test("in flight above 1 by partition", parallel, []string{"MaxInFlight", "4", "OrderByPartition", "OrderByKey", "Unordered"})

	if _, err := ackpolicy.NewSubscriber(sound(), nil); err != nil {
		t.Errorf("a sound configuration: %v", err)
	}
	unlimited := sound()
	unlimited.MaxUncommitted = ackpolicy.Unlimited
	unlimited.Kafka.NackResendSleep, unlimited.Kafka.ReconnectRetrySleep = kafka.NoSleep, kafka.NoSleep
	if _, err := ackpolicy.NewSubscriber(unlimited, nil); err != nil {
		t.Errorf("Unlimited and NoSleep: %v", err)
	}
}

// The application's configuration is copied, never changed.
func TestConfigIsNotChanged(t *testing.T) {
	t.Parallel()
	cfg := config(brokertest.Group(t))
	before := *cfg.Kafka.OverwriteSaramaConfig
	topic := newTopic(t, 1, numbered(1)...)
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.Ack.Middleware)
	s.journal.wait(t, 1)
	s.stop()
	after := *cfg.Kafka.OverwriteSaramaConfig
	if before.Consumer.Offsets != after.Consumer.Offsets || before.ClientID != after.ClientID || before.Net.ReadTimeout != after.Net.ReadTimeout ||
		before.Consumer.MaxProcessingTime != after.Consumer.MaxProcessingTime || before.ChannelBufferSize != after.ChannelBufferSize ||
		before.Consumer.Return != after.Consumer.Return || before.Consumer.Group.Rebalance.Timeout != after.Consumer.Group.Rebalance.Timeout {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
}

// A policy that does not exist is no reason to ack anything.
func TestInvalidPolicy(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, numbered(1)...)
	for name, mw := range map[string]ackpolicy.Middleware{
		"Policy":   {Policy: 99},
		"Handlers": {Policy: ackpolicy.Ack, Handlers: map[string]ackpolicy.Policy{"other": 98}},
	} {
		t.Run(name, func(t *testing.T) {
			group := brokertest.Group(t)
			failures := make(chan error, 1)
			s := consume(t, config(group), topic, func(*message.Message, *ackpolicy.Delivery) error { return nil },
				failuresTo(failures), mw.Middleware)
			if err := await(t, "an error", failures); !strings.Contains(err.Error(), name) {
				t.Errorf("does not name the field: %v", err)
			}
			s.stop()
			s.journal.want(t)
			wantCommitted(t, group, topic, 0, 0)
		})
	}
}

// The library brings no test broker and no test library into an application.
func TestDependencies(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("%v\n%s", err, exit.Stderr)
	}
	check(t, err)
	for _, path := range strings.Fields(string(out)) {
		for _, unwanted := range []string{"kfake", "franz-go", "testify", "goleak", "rapid", "brokertest"} {
			if strings.Contains(path, unwanted) {
				t.Errorf("imports %s", path)
			}
		}
		if path == "testing" {
			t.Error("imports testing")
		}
	}
}

// Watermill names a subscriber by its String method or its type, in logs and in the labels of metrics.
func TestName(t *testing.T) {
	t.Parallel()
	stock := strings.TrimLeft(fmt.Sprintf("%T", &kafka.Subscriber{}), "*")
	sub := newSubscriber(t, config(""), nil)
	if got := sub.String(); got != stock {
		t.Errorf("String: %q, want %q", got, stock)
	}
	names := make(chan string, 1)
	s := consume(t, config(brokertest.Group(t)), newTopic(t, 1, numbered(1)...),
		func(msg *message.Message, _ *ackpolicy.Delivery) error {
			names <- message.SubscriberNameFromCtx(msg.Context())
			return nil
		}, ackpolicy.Ack.Middleware)
	if got := await(t, "a message", names); got != stock {
		t.Errorf("the Router calls it %q, want %q", got, stock)
	}
	s.stop()
}

// Guarantees states what the configuration promises.
func TestGuarantees(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change change
		words  []string
	}{
		"default":   {func(*ackpolicy.SubscriberConfig) {}, []string{"at least once", "partition", "100000"}},
		"by key":    {ordering(ackpolicy.OrderByKey, 0), []string{"at least once", "key"}},
		"bound":     {func(c *ackpolicy.SubscriberConfig) { c.MaxUncommitted = 1234 }, []string{"1234"}},
		"no group":  {func(c *ackpolicy.SubscriberConfig) { c.Kafka.ConsumerGroup = "" }, []string{"group"}},
		"unordered": {ordering(ackpolicy.Unordered, 0), []string{"at least once", "order"}},
	} {
		got := newSubscriber(t, config(brokertest.Group(t), c.change), nil).Guarantees()
		for _, word := range c.words {
			if !strings.Contains(got, word) {
				t.Errorf("%s: %q is not in %q", name, word, got)
			}
		}
	}
}

// The constructor dials nothing, the initializer does what upstream's does.
func TestSubscribeInitialize(t *testing.T) {
	t.Parallel()
	cfg := config(brokertest.Group(t))
	if err := newSubscriber(t, cfg, nil).SubscribeInitialize("topic"); err == nil {
		t.Error("without InitializeTopicDetails: no error")
	}
	cfg.Kafka.InitializeTopicDetails = &sarama.TopicDetail{NumPartitions: 3, ReplicationFactor: 1}
	sub, topic := newSubscriber(t, cfg, nil), brokertest.Topic(t)
	check(t, sub.SubscribeInitialize(topic))
	check(t, sub.SubscribeInitializeWithContext(t.Context(), topic))
	offsets, err := sub.PartitionOffset(topic)
	check(t, err)
	if want := []int64{0, 0, 0}; len(offsets) != 3 || !slices.Equal([]int64{offsets[0], offsets[1], offsets[2]}, want) {
		t.Errorf("PartitionOffset: %v", offsets)
	}
	cfg.Kafka.Brokers = []string{"127.0.0.1:1"}
	started := time.Now()
	unreachable := newSubscriber(t, cfg, nil)
	check(t, unreachable.Close())
	if took := time.Since(started); took > time.Second {
		t.Errorf("a subscriber that was never used took %v", took)
	}
}
