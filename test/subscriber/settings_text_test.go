package subscriber_test

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"go.yaml.in/yaml/v3"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

const inYAML = `
policy: reject_on_error
ordering: key
max_in_flight: 16
max-in-flight-total: 100
maxUncommitted: unlimited
MaxBufferedBytes: 1048576
commit_interval: 500ms
backoff: {initial: 50ms, max: 30s, multiplier: 3, no_jitter: true}
max_deliveries: 5
max_age: 15m
dead_letter:
  topic: "{topic}.graveyard"
  headers: spring
  create: {num_partitions: 3, config_entries: {retention.ms: "-1"}}
on_undecodable: retry
on_unstorable: give_up
drain_timeout: 20s
handler_slow: 90s
kafka:
  brokers: [one:9092, "two:9092"]
  consumer_group: billing
  nack_resend_sleep: 250ms
  otel_enabled: false
  sarama:
    client_id: shop
    version: 2.8.1
    net: {sasl: {enable: true, mechanism: PLAIN, user: u, password: p}, dial_timeout: 3s}
    consumer:
      offsets: {initial: oldest, auto_commit: {enable: false}}
      isolation_level: read_committed
      max_wait_time: 100ms
      group: {rebalance: {group_strategies: [cooperative_sticky, range]}, session: {timeout: 6s}}
`

// A configuration as YAML, and the same as JSON.
func TestConfigurationAsText(t *testing.T) {
	t.Parallel()
	var tree any
	testkit.Check(t, yaml.Unmarshal([]byte(inYAML), &tree))
	inJSON, err := json.Marshal(tree)
	testkit.Check(t, err)
	for name, unmarshal := range map[string]func(*ackpolicy.SubscriberConfig) error{
		"YAML": func(c *ackpolicy.SubscriberConfig) error { return yaml.Unmarshal([]byte(inYAML), c) },
		"JSON": func(c *ackpolicy.SubscriberConfig) error { return json.Unmarshal(inJSON, c) },
		"a part of a larger one": func(c *ackpolicy.SubscriberConfig) error {
			var file struct{ Subscriber ackpolicy.SubscriberConfig }
			err := yaml.Unmarshal([]byte("subscriber:"+strings.ReplaceAll(inYAML, "\n", "\n  ")), &file)
			*c = file.Subscriber
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c ackpolicy.SubscriberConfig
			testkit.Check(t, unmarshal(&c))
			testkit.Check(t, c.Validate())
			if got := c.Backoff(3, nil); got != 450*time.Millisecond {
				t.Errorf("Backoff: %v", got)
			}
			dead := c.DeadLetter.(ackpolicy.DeadLetterTopic)
			if got := dead.Topic("orders"); got != "orders.graveyard" {
				t.Errorf("DeadLetterTopic.Topic: %s", got)
			}
			if profile, err := dead.Headers.MarshalText(); err != nil || string(profile) != "spring" {
				t.Errorf("DeadLetterTopic.Headers: %s, %v", profile, err)
			}
			retention := "-1"
			if want := (sarama.TopicDetail{NumPartitions: 3, ConfigEntries: map[string]*string{"retention.ms": &retention}}); !reflect.DeepEqual(*dead.Create, want) {
				t.Errorf("DeadLetterTopic.Create: %+v", dead.Create)
			}
			cfg := c.Kafka.OverwriteSaramaConfig
			var strategies []string
			for _, s := range cfg.Consumer.Group.Rebalance.GroupStrategies {
				strategies = append(strategies, s.Name())
			}
			for what, got := range map[string][2]any{
				"strategies": {strategies, []string{"cooperative-sticky", "range"}},
				"version":    {cfg.Version, sarama.V2_8_1_0},
				"initial":    {cfg.Consumer.Offsets.Initial, sarama.OffsetOldest},
				"isolation":  {cfg.Consumer.IsolationLevel, sarama.ReadCommitted},
				"sasl":       {[]any{cfg.Net.SASL.Enable, string(cfg.Net.SASL.Mechanism), cfg.Net.SASL.User, cfg.Net.SASL.Password}, []any{true, "PLAIN", "u", "p"}},
				"timeouts":   {[]time.Duration{cfg.Net.DialTimeout, cfg.Consumer.MaxWaitTime, cfg.Consumer.Group.Session.Timeout}, []time.Duration{3 * time.Second, 100 * time.Millisecond, 6 * time.Second}},
				"client":     {cfg.ClientID, "shop"},
				"a default":  {cfg.Consumer.Return.Errors, kafka.DefaultSaramaSubscriberConfig().Consumer.Return.Errors},
			} {
				if !reflect.DeepEqual(got[0], got[1]) {
					t.Errorf("%s: %v, want %v", what, got[0], got[1])
				}
			}
			if cfg.Consumer.Offsets.AutoCommit.Enable {
				t.Error("auto-commit is on")
			}
			c.Backoff, c.DeadLetter, c.Kafka.OverwriteSaramaConfig = nil, nil, nil
			want := ackpolicy.SubscriberConfig{
				Policy: new(ackpolicy.RejectOnError), Ordering: ackpolicy.OrderByKey, MaxInFlight: 16, MaxInFlightTotal: 100,
				MaxUncommitted: ackpolicy.Unlimited, MaxBufferedBytes: 1 << 20, CommitInterval: 500 * time.Millisecond,
				MaxDeliveries: 5, MaxAge: 15 * time.Minute, OnUndecodable: ackpolicy.UndecodableRetry, OnUnstorable: ackpolicy.UnstorableGiveUp,
				DrainTimeout: 20 * time.Second, HandlerSlow: 90 * time.Second,
				Kafka: kafka.SubscriberConfig{Brokers: []string{"one:9092", "two:9092"}, ConsumerGroup: "billing", NackResendSleep: 250 * time.Millisecond},
			}
			if !reflect.DeepEqual(c, want) {
				t.Errorf("got  %+v\nwant %+v", c, want)
			}
		})
	}
}

// What the text does not mention stays; what it changes is a copy.
func TestConfigurationIsAmended(t *testing.T) {
	t.Parallel()
	own := sarama.NewConfig()
	own.ClientID, own.Net.TLS.Enable = "mine", true
	c := ackpolicy.SubscriberConfig{
		Kafka:  kafka.SubscriberConfig{ConsumerGroup: "default", OverwriteSaramaConfig: own},
		Policy: new(ackpolicy.Manual), MaxAge: time.Hour, DeadLetter: ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{NumPartitions: 7}},
	}
	policy := c.Policy
	testkit.Check(t, json.Unmarshal([]byte(`{"policy": "ack", "dead_letter": {"create": {"replication_factor": 3}}, "max_deliveries": null,
		"backoff": "2s", "kafka": {"sarama": {"rack_id": "a"}, "brokers": ["b:9092"]}}`), &c))
	dead := c.DeadLetter.(ackpolicy.DeadLetterTopic)
	if cfg := c.Kafka.OverwriteSaramaConfig; *c.Policy != ackpolicy.Ack || *policy != ackpolicy.Manual || c.MaxAge != time.Hour || c.Kafka.ConsumerGroup != "default" ||
		cfg.ClientID != "mine" || !cfg.Net.TLS.Enable || cfg.RackID != "a" || own.RackID != "" ||
		dead.Create.NumPartitions != 7 || dead.Create.ReplicationFactor != 3 || c.Backoff(9, nil) != 2*time.Second {
		t.Errorf("got %+v", c)
	}
	shared := &ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{NumPartitions: 5}}
	pointer := ackpolicy.SubscriberConfig{DeadLetter: shared}
	testkit.Check(t, json.Unmarshal([]byte(`{"dead_letter": {"headers": "spring"}}`), &pointer))
	if dead := pointer.DeadLetter.(ackpolicy.DeadLetterTopic); dead.Create == nil || dead.Create.NumPartitions != 5 || dead.Headers == nil || shared.Headers != nil {
		t.Errorf("a pointer's settings: %+v, of %+v", dead, shared)
	}
	m := ackpolicy.Middleware{Handlers: map[string]ackpolicy.Policy{"a": ackpolicy.Ack}}
	handlers := m.Handlers
	testkit.Check(t, json.Unmarshal([]byte(`{"handlers": {"b": "manual"}}`), &m))
	if len(handlers) != 1 || len(m.Handlers) != 2 {
		t.Errorf("Handlers: %v, of %v", m.Handlers, handlers)
	}
	before := c
	if err := json.Unmarshal([]byte(`{"max_age": "1s", "drain_timeout": "soon"}`), &c); err == nil || c.MaxAge != before.MaxAge {
		t.Errorf("a half of a bad text was taken: %v, %v", err, c.MaxAge)
	}
}

// Each mistake is named with its path, and all of them in one error.
func TestBadText(t *testing.T) {
	t.Parallel()
	cases := map[string][]string{ // the text of an object's member, and what the error has to contain
		`"max_delivery": 3`:                                {"max_delivery: no such setting", "max_deliveries"},
		`"kafka": {"broker": ["b"]}`:                       {"kafka.broker: no such setting", "brokers"},
		`"kafka": {"sarama": {"consumer": {"ofsets": 1}}}`: {"kafka.sarama.consumer.ofsets: no such setting", "offsets"},
		`"max_age": 15`:                                    {"max_age: 15: want a duration", `"15m"`},
		`"drain_timeout": "soon"`:                          {`drain_timeout: "soon": want a duration`},
		`"commit_interval": {}`:                            {"commit_interval: {}: want a duration"},
		`"policy": "nack"`:                                 {"policy: ", `"nack"`, "nack_on_error"},
		`"ordering": 1`:                                    {"ordering: ", `"1"`, "partition, key, none"},
		`"on_undecodable": "drop"`:                         {"on_undecodable: ", "auto, retry, reject"},
		`"on_unstorable": "drop"`:                          {"on_unstorable: ", "keep, reduce, give_up"},
		`"max_in_flight": "many"`:                          {`max_in_flight: "many": want a number`},
		`"max_uncommitted": 1.5`:                           {"max_uncommitted: 1.5: want a number"},
		`"hooks": {"settled": "x"}`:                        {"hooks.settled: it can only be set in code"},
		`"key": "x"`:                                       {"key: it can only be set in code"},
		`"kafka": {"unmarshaler": "json"}`:                 {"kafka.unmarshaler: it can only be set in code"},
		`"kafka": {"brokers": "b:9092"}`:                   {"kafka.brokers: ", "want a list"},
		`"kafka": []`:                                      {"kafka: []: want an object", "consumer_group"},
		`"kafka": {"otel_enabled": "yes"}`:                 {"kafka.otel_enabled: ", "true or false"},
		`"kafka": {"sarama": {"version": "new"}}`:          {"kafka.sarama.version: ", "2.8.0"},
		`"kafka": {"sarama": {"consumer": {"offsets": {"initial": "first"}}}}`:                     {"kafka.sarama.consumer.offsets.initial: ", "newest, oldest"},
		`"kafka": {"sarama": {"consumer": {"group": {"rebalance": {"group_strategies": ["x"]}}}}}`: {"group_strategies[0]: ", "cooperative_sticky"},
		`"dead_letter": {"headers": "json", "topics": "x", "topic": ""}`:                           {"dead_letter.headers: ", "watermill", "dead_letter.topics: no such setting", "dead_letter.topic: "},
		`"backoff": {"initial": "x"}`:     {"backoff.initial: ", "duration"},
		`"backoff": "x"`:                  {"backoff: ", "duration"},
		`"max_age": "1s", "maxAge": "2s"`: {"max_age", "maxAge", "same setting"},
	}
	var all, words []string
	for text, want := range cases {
		var c ackpolicy.SubscriberConfig
		wantWords(t, text, json.Unmarshal([]byte("{"+text+"}"), &c), want)
		if !strings.HasPrefix(text, `"kafka"`) && !strings.Contains(text, "maxAge") && !strings.HasPrefix(text, `"backoff": "`) && !strings.HasPrefix(text, `"max_age"`) {
			all, words = append(all, text), append(words, want...)
		}
	}
	var c ackpolicy.SubscriberConfig
	err := json.Unmarshal([]byte("{"+strings.Join(all, ", ")+"}"), &c)
	wantWords(t, "all", err, words)
	if err := yaml.Unmarshal([]byte("max_age: 1s\nmax_delivery: 3\n"), &c); err == nil || !strings.Contains(err.Error(), "max_delivery: no such setting: do you mean max_deliveries?") {
		t.Errorf("YAML: %v", err)
	}
}

// Every setting that is chosen from a few has a text, which leads back to it.
func TestSettingsAsText(t *testing.T) {
	t.Parallel()
	type text interface {
		encoding.TextMarshaler
		fmt.Stringer
	}
	check := func(value text, parsed any, err error, names ...string) {
		t.Helper()
		if marshalled, merr := value.MarshalText(); merr != nil || string(marshalled) != names[0] || value.String() != names[0] || err != nil || parsed != any(value) {
			t.Errorf("%v: %s, %v, %v, %v", value, marshalled, merr, parsed, err)
		}
	}
	for value, names := range map[ackpolicy.Ordering][]string{
		ackpolicy.OrderByPartition: {"partition", "OrderByPartition", "order_by_partition"},
		ackpolicy.OrderByKey:       {"key", "KEY", "OrderByKey", "order-by-key"},
		ackpolicy.Unordered:        {"none", "Unordered"},
	} {
		for _, name := range names {
			parsed, err := ackpolicy.ParseOrdering(name)
			check(value, parsed, err, names...)
		}
	}
	for value, names := range map[ackpolicy.Undecodable][]string{
		ackpolicy.UndecodableAuto: {"auto", "UndecodableAuto"}, ackpolicy.UndecodableRetry: {"retry", "RETRY"}, ackpolicy.UndecodableReject: {"reject"},
	} {
		for _, name := range names {
			parsed, err := ackpolicy.ParseUndecodable(name)
			check(value, parsed, err, names...)
		}
	}
	for value, names := range map[ackpolicy.Unstorable][]string{
		ackpolicy.UnstorableKeep: {"keep"}, ackpolicy.UnstorableReduce: {"reduce"}, ackpolicy.UnstorableGiveUp: {"give_up", "giveUp", "UnstorableGiveUp"},
	} {
		for _, name := range names {
			parsed, err := ackpolicy.ParseUnstorable(name)
			check(value, parsed, err, names...)
		}
	}
	for name, profile := range map[string]ackpolicy.HeaderProfile{
		"ackpolicy": ackpolicy.HeadersAckpolicy, "watermill": ackpolicy.HeadersWatermill, "spring": ackpolicy.HeadersSpring, "kafka": ackpolicy.HeadersKafka,
	} {
		parsed, err := ackpolicy.ParseHeaderProfile("Headers" + strings.ToUpper(name))
		testkit.Check(t, err)
		letter := ackpolicy.Letter{Topic: "t", Reason: errors.New("boom")}
		if marshalled, err := profile.MarshalText(); err != nil || string(marshalled) != name || !reflect.DeepEqual(parsed(letter), profile(letter)) {
			t.Errorf("%s: %s, %v", name, marshalled, err)
		}
	}
	if text, err := ackpolicy.HeaderProfile(func(ackpolicy.Letter) []sarama.RecordHeader { return nil }).MarshalText(); err == nil {
		t.Errorf("a function of the application is %s", text)
	}
	for name, err := range map[string]error{
		"ordering": second(ackpolicy.ParseOrdering("x")), "undecodable": second(ackpolicy.ParseUndecodable("x")),
		"unstorable": second(ackpolicy.ParseUnstorable("x")), "header profile": second(ackpolicy.ParseHeaderProfile("x")),
	} {
		if err == nil || !strings.Contains(err.Error(), `"x": want one of`) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"Ordering": second(ackpolicy.Ordering(9).MarshalText()), "Undecodable": second(ackpolicy.Undecodable(9).MarshalText()), "Unstorable": second(ackpolicy.Unstorable(9).MarshalText()),
	} {
		if err == nil {
			t.Errorf("%s(9) has a text", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A middleware as text, on a subscriber as text.
func TestMiddlewareAsText(t *testing.T) {
	t.Parallel()
	var file struct {
		Subscriber ackpolicy.SubscriberConfig
		Middleware ackpolicy.Middleware
	}
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	testkit.Check(t, yaml.Unmarshal(fmt.Appendf(nil, `
subscriber:
  policy: nack_on_error
  backoff: 1ms
  commit_interval: 100ms
  kafka:
    brokers: [%q]
    consumer_group: %s
    sarama: {consumer: {offsets: {initial: oldest}, max_wait_time: 100ms}}
middleware:
  handlers: {handler: nack_on_error}
  max_deliveries: 3
`, testkit.Shared.Addrs()[0], group), &file))
	testkit.Check(t, file.Middleware.Validate())
	s := testkit.Consume(t, file.Subscriber, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return testkit.ErrBoom
		}
		return nil
	}, file.Middleware.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 2)
	s.Stop()
	s.Want(t, "0#1", "0#2", "0#3", "1#1")

	var m ackpolicy.Middleware
	if err := json.Unmarshal([]byte(`{"polici": "ack", "handlers": {"x": "y"}}`), &m); err == nil || !strings.Contains(err.Error(), "polici: no such setting: do you mean policy?") || !strings.Contains(err.Error(), `handlers: ackpolicy: unknown policy "y"`) {
		t.Errorf("got %v", err)
	}
}
