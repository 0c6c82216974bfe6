package ackpolicy

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"

	"github.com/ackpolicy/watermill-ackpolicy/internal/settings"
)

// UnmarshalJSON fills the configuration from an object. Its keys are the names of the fields, in
// any usual spelling: max_age, maxAge or MaxAge. Kafka has those of kafka.SubscriberConfig, and
// its OverwriteSaramaConfig, or sarama for short, those of sarama.Config. Unknown keys are
// errors. What is not mentioned keeps its value, so defaults may be set before, and what has no
// text (functions, the Unmarshaler, TLS certificates) before or after.
//
//   - durations are texts such as "10s"; limits may be "unlimited"
//   - policies and the like are texts: "nack_on_error", "key", "reject"
//   - backoff is a duration, or an object with the fields of ExponentialBackoff
//   - dead_letter is an object with the fields of DeadLetterTopic. Its topic is a text in which
//     {topic} stands for the name of the record's topic, and its headers a name of a HeaderProfile
//   - of the sarama configuration, Consumer.Offsets.Initial is "oldest", "newest" or a number,
//     Version a text, and a balance strategy "range", "round_robin", "sticky" or
//     "cooperative_sticky". It starts from kafka.DefaultSaramaSubscriberConfig.
//
// The error names each mistake with its path. Validate checks the values.
func (c *SubscriberConfig) UnmarshalJSON(text []byte) error {
	return fromJSON(text, c, "SubscriberConfig")
}

// UnmarshalYAML fills the configuration from YAML, as UnmarshalJSON does from JSON. It is called
// by the packages go.yaml.in/yaml, gopkg.in/yaml and github.com/goccy/go-yaml. Package
// sigs.k8s.io/yaml calls UnmarshalJSON.
func (c *SubscriberConfig) UnmarshalYAML(unmarshal func(any) error) error {
	return fromYAML(unmarshal, c)
}

// UnmarshalJSON fills the middleware from an object, as SubscriberConfig.UnmarshalJSON does.
func (m *Middleware) UnmarshalJSON(text []byte) error {
	return fromJSON(text, m, "Middleware")
}

// UnmarshalYAML fills the middleware from YAML, as SubscriberConfig.UnmarshalYAML does.
func (m *Middleware) UnmarshalYAML(unmarshal func(any) error) error {
	return fromYAML(unmarshal, m)
}

// fromJSON leaves into as it is if the text has a mistake.
func fromJSON[T any](text []byte, into *T, name string) error {
	filled := *into
	if err := decoder.Decode(text, &filled); err != nil {
		return fmt.Errorf("ackpolicy: bad %s: %w", name, err)
	}
	*into = filled
	return nil
}

func fromYAML(unmarshal func(any) error, into json.Unmarshaler) error {
	var tree any
	if err := unmarshal(&tree); err != nil {
		return err
	}
	text, err := json.Marshal(jsonTree(tree))
	if err != nil {
		return err
	}
	return into.UnmarshalJSON(text)
}

// jsonTree gives the maps of older YAML packages keys that JSON has.
func jsonTree(tree any) any {
	switch tree := tree.(type) {
	case map[any]any:
		of := map[string]any{}
		for key, value := range tree {
			of[fmt.Sprint(key)] = jsonTree(value)
		}
		return of
	case map[string]any:
		of := map[string]any{}
		for key, value := range tree {
			of[key] = jsonTree(value)
		}
		return of
	case []any:
		of := slices.Clone(tree)
		for i := range of {
			of[i] = jsonTree(of[i])
		}
		return of
	}
	return tree
}

type fill = func(d *settings.Decoder, value json.RawMessage, into reflect.Value) error

var decoder = &settings.Decoder{
	Types: map[reflect.Type]fill{
		reflect.TypeFor[DeadLetter]():                     fillDeadLetter,
		reflect.TypeFor[func(int, error) time.Duration](): fillBackoff,
		reflect.TypeFor[func(string) string]():            fillTopic,
		reflect.TypeFor[*sarama.Config]():                 fillSarama(sarama.NewConfig),
		reflect.TypeFor[sarama.KafkaVersion]():            fillVersion,
		reflect.TypeFor[sarama.BalanceStrategy]():         fillStrategy,
		reflect.TypeFor[sarama.IsolationLevel]():          fillIsolation,
	},
	Fields: map[string]fill{
		"Kafka.OverwriteSaramaConfig": fillSarama(kafka.DefaultSaramaSubscriberConfig),
		"Consumer.Offsets.Initial":    fillInitial,
	},
	Names: map[string]string{"sarama": "OverwriteSaramaConfig"},
}

func fillDeadLetter(d *settings.Decoder, value json.RawMessage, into reflect.Value) error {
	topic, _ := into.Interface().(DeadLetterTopic)
	if before, ok := into.Interface().(*DeadLetterTopic); ok && before != nil {
		topic = *before
	}
	if err := d.Decode(value, &topic); err != nil {
		return err
	}
	into.Set(reflect.ValueOf(topic))
	return nil
}

func fillBackoff(d *settings.Decoder, value json.RawMessage, into reflect.Value) error {
	if value[0] == '{' {
		var grows ExponentialBackoff
		err := d.Decode(value, &grows)
		if err == nil {
			into.Set(reflect.ValueOf(grows.Delay))
		}
		return err
	}
	var fixed time.Duration
	err := d.Decode(value, &fixed)
	if err == nil {
		into.Set(reflect.ValueOf(func(int, error) time.Duration { return fixed }))
	}
	return err
}

func fillTopic(_ *settings.Decoder, value json.RawMessage, into reflect.Value) error {
	pattern, err := settings.Text(value)
	if err == nil && pattern == "" {
		err = fmt.Errorf(`%s: want a name, such as "{topic}.dlq"`, value)
	}
	if err == nil {
		into.Set(reflect.ValueOf(func(origin string) string { return strings.ReplaceAll(pattern, "{topic}", origin) }))
	}
	return err
}

// fillSarama changes a copy of the configuration that is there, or of a default.
func fillSarama(defaults func() *sarama.Config) fill {
	return func(d *settings.Decoder, value json.RawMessage, into reflect.Value) error {
		filled := defaults()
		if before := into.Interface().(*sarama.Config); before != nil {
			*filled = *before
		}
		if err := d.Decode(value, filled); err != nil {
			return err
		}
		into.Set(reflect.ValueOf(filled))
		return nil
	}
}

func fillVersion(_ *settings.Decoder, value json.RawMessage, into reflect.Value) error {
	text, err := settings.Text(value)
	if err != nil {
		return err
	}
	version, err := sarama.ParseKafkaVersion(text)
	if err != nil {
		return fmt.Errorf(`%s: want a version such as "2.8.0"`, value)
	}
	into.Set(reflect.ValueOf(version))
	return nil
}

var strategies = map[string]func() sarama.BalanceStrategy{
	"range": sarama.NewBalanceStrategyRange, "round_robin": sarama.NewBalanceStrategyRoundRobin,
	"sticky": sarama.NewBalanceStrategySticky, "cooperative_sticky": sarama.NewBalanceStrategyCooperativeSticky,
}

func fillStrategy(_ *settings.Decoder, value json.RawMessage, into reflect.Value) error {
	return fillNamed(value, strategies, func(strategy func() sarama.BalanceStrategy) { into.Set(reflect.ValueOf(strategy())) })
}

func fillIsolation(_ *settings.Decoder, value json.RawMessage, into reflect.Value) error {
	levels := map[string]sarama.IsolationLevel{"read_uncommitted": sarama.ReadUncommitted, "read_committed": sarama.ReadCommitted}
	return fillNamed(value, levels, func(level sarama.IsolationLevel) { into.Set(reflect.ValueOf(level)) })
}

func fillInitial(_ *settings.Decoder, value json.RawMessage, into reflect.Value) error {
	if json.Unmarshal(value, into.Addr().Interface()) == nil {
		return nil
	}
	return fillNamed(value, map[string]int64{"oldest": sarama.OffsetOldest, "newest": sarama.OffsetNewest}, into.SetInt)
}

// fillNamed sets what has one of some names.
func fillNamed[T any](value json.RawMessage, names map[string]T, set func(T)) error {
	text, err := settings.Text(value)
	if err != nil {
		return err
	}
	for name, named := range names {
		if fold(name) == fold(text) {
			set(named)
			return nil
		}
	}
	return fmt.Errorf("%s: want one of %s", value, strings.Join(slices.Sorted(maps.Keys(names)), ", "))
}

// The names of settings may be spelt nack_on_error, NackOnError, nack-on-error or NACK_ON_ERROR.
func fold(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(strings.TrimSpace(s)))
}

// parse returns the number of a name. The name may have a prefix, as the constants in Go have.
func parse[T ~uint8](kind, prefix string, names []string, s string) (T, error) {
	for i, name := range names {
		if folded := fold(s); folded == fold(name) || prefix != "" && folded == prefix+fold(name) {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("ackpolicy: unknown %s %q: want one of %s", kind, s, strings.Join(names, ", "))
}

func nameOf[T ~uint8](kind string, names []string, v T) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("%s(%d)", kind, uint8(v))
}

func marshal[T ~uint8](kind string, names []string, v T) ([]byte, error) {
	if int(v) >= len(names) {
		return nil, fmt.Errorf("ackpolicy: no such %s: %d", kind, uint8(v))
	}
	return []byte(names[v]), nil
}

func unmarshal[T any](into *T, parsed T, err error) error {
	if err == nil {
		*into = parsed
	}
	return err
}

// ParsePolicy returns the policy with the given name. It accepts the spellings
// nack_on_error, NackOnError, nack-on-error and NACK_ON_ERROR.
func ParsePolicy(s string) (Policy, error) { return parse[Policy]("policy", "", policyNames[:], s) }

// MarshalText implements encoding.TextMarshaler.
func (p Policy) MarshalText() ([]byte, error) { return marshal("policy", policyNames[:], p) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Policy) UnmarshalText(text []byte) error {
	parsed, err := ParsePolicy(string(text))
	return unmarshal(p, parsed, err)
}

// ParseOrdering returns the ordering with the given name: partition, key or none, or the
// name of its constant.
func ParseOrdering(s string) (Ordering, error) {
	if fold(s) == "unordered" {
		return Unordered, nil
	}
	return parse[Ordering]("ordering", "orderby", orderingNames[:], s)
}

// MarshalText implements encoding.TextMarshaler.
func (o Ordering) MarshalText() ([]byte, error) { return marshal("ordering", orderingNames[:], o) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Ordering) UnmarshalText(text []byte) error {
	parsed, err := ParseOrdering(string(text))
	return unmarshal(o, parsed, err)
}

var undecodableNames = []string{"auto", "retry", "reject"}

// String returns "auto", "retry" or "reject".
func (u Undecodable) String() string { return nameOf("Undecodable", undecodableNames, u) }

// ParseUndecodable returns the value with the given name: auto, retry or reject, or the name
// of its constant.
func ParseUndecodable(s string) (Undecodable, error) {
	return parse[Undecodable]("Undecodable", "undecodable", undecodableNames, s)
}

// MarshalText implements encoding.TextMarshaler.
func (u Undecodable) MarshalText() ([]byte, error) {
	return marshal("Undecodable", undecodableNames, u)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *Undecodable) UnmarshalText(text []byte) error {
	parsed, err := ParseUndecodable(string(text))
	return unmarshal(u, parsed, err)
}

var unstorableNames = []string{"keep", "reduce", "give_up"}

// String returns "keep", "reduce" or "give_up".
func (u Unstorable) String() string { return nameOf("Unstorable", unstorableNames, u) }

// ParseUnstorable returns the value with the given name: keep, reduce or give_up, or the name
// of its constant.
func ParseUnstorable(s string) (Unstorable, error) {
	return parse[Unstorable]("Unstorable", "unstorable", unstorableNames, s)
}

// MarshalText implements encoding.TextMarshaler.
func (u Unstorable) MarshalText() ([]byte, error) { return marshal("Unstorable", unstorableNames, u) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *Unstorable) UnmarshalText(text []byte) error {
	parsed, err := ParseUnstorable(string(text))
	return unmarshal(u, parsed, err)
}

// ParseHeaderProfile returns the profile with the given name: ackpolicy, watermill, spring or
// kafka, or the name of its function.
func ParseHeaderProfile(s string) (HeaderProfile, error) {
	i, err := parse[uint8]("header profile", "headers", profileNames, s)
	if err != nil {
		return nil, err
	}
	return profiles[i], nil
}

// MarshalText implements encoding.TextMarshaler. A function of the application has no text.
func (p HeaderProfile) MarshalText() ([]byte, error) {
	for i, known := range profiles {
		if reflect.ValueOf(p).Pointer() == reflect.ValueOf(known).Pointer() {
			return []byte(profileNames[i]), nil
		}
	}
	return nil, fmt.Errorf("ackpolicy: the header profile is none of %s", strings.Join(profileNames, ", "))
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *HeaderProfile) UnmarshalText(text []byte) error {
	parsed, err := ParseHeaderProfile(string(text))
	return unmarshal(p, parsed, err)
}
