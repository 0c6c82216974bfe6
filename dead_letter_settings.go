package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
	"github.com/ackpolicy/watermill-ackpolicy/internal/topic"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// source describes the topic that the letters come from.
type source struct {
	topic      string
	partitions int            // 0 if not known
	settings   topic.Settings // nil if we may not read them
}

// askSource asks the brokers of the records, which may be others than those of the letters.
func askSource(ctx context.Context, client sarama.Client, d DeadLetterTopic, c *SubscriberConfig, origin string) (source, error) {
	s := source{topic: origin}
	if d.Brokers != nil || d.Config != nil {
		cfg := letterConfig(c.Kafka.OverwriteSaramaConfig)
		dialer := dial.New(cfg)
		defer dialer.Cut()
		defer context.AfterFunc(ctx, dialer.Cut)()
		other, err := sarama.NewClient(c.Kafka.Brokers, cfg)
		if err != nil {
			return s, fmt.Errorf("cannot connect to %v, where topic %s is: %w", c.Kafka.Brokers, origin, dial.Explain(cfg, err))
		}
		defer func() { _ = other.Close() }()
		client = other
	}
	partitions, err := client.Partitions(origin)
	if err == nil {
		s.partitions = len(partitions)
	} else if d.Create != nil && d.Create.NumPartitions == 0 {
		return s, fmt.Errorf("cannot ask how many partitions %s has: %w", origin, err)
	}
	s.settings, _ = topic.Ask(client, origin, compared...)
	return s, nil
}

// ensure checks that the topic exists, and creates it if the configuration says so.
func (t *letterTopic) ensure(ctx context.Context) error {
	if t.create != nil && t.missing() {
		return t.create(ctx)
	}
	err := t.client.RefreshMetadata(t.name)
	if err == nil || errors.Is(err, sarama.ErrLeaderNotAvailable) {
		if partitions, perr := t.client.Partitions(t.name); perr == nil && len(partitions) > 0 {
			return nil
		}
	}
	switch {
	case errors.Is(err, sarama.ErrTopicAuthorizationFailed):
		return fmt.Errorf("the user needs the right to write to it: %w", err)
	case err != nil && !errors.Is(err, sarama.ErrUnknownTopicOrPartition) && !errors.Is(err, sarama.ErrLeaderNotAvailable):
		return err
	case t.create == nil:
		return fmt.Errorf("it is not there: create it, or set DeadLetterTopic.Create: %w", errors.Join(err, sarama.ErrUnknownTopicOrPartition))
	}
	return t.create(ctx)
}

// missing reports whether a broker responds that it knows no such topic. sarama's client would ask it for
// three quarters of a second, at each Subscribe.
func (t *letterTopic) missing() bool {
	if _, err := t.client.Controller(); err != nil {
		return false // which creates topics, and is known once the metadata of any topic are
	}
	broker := t.client.LeastLoadedBroker()
	if broker == nil {
		return false
	}
	response, err := broker.GetMetadata(sarama.NewMetadataRequest(t.client.Config().Version, []string{t.name}))
	if err != nil {
		_ = broker.Close()
		return false
	}
	return len(response.Topics) == 1 && response.Topics[0].Err == sarama.ErrUnknownTopicOrPartition
}

// createAgain creates the topic after somebody deleted it.
func (t *letterTopic) createAgain(ctx context.Context) error {
	select {
	case t.creating <- struct{}{}:
		defer func() { <-t.creating }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := t.client.RefreshMetadata(t.name); err == nil {
		return nil // it exists again
	}
	if err := t.ensure(ctx); err != nil {
		return err
	}
	t.writer.Reset()
	t.logger.Error("Dead letter topic was deleted and is created again: the letters in it are lost",
		sarama.ErrUnknownTopicOrPartition, nil)
	return nil
}

// createTopic creates the topic and waits for its leaders. It leaves out those of our own
// settings that the broker refuses.
func (t *letterTopic) createTopic(ctx context.Context, user *sarama.TopicDetail, from source) error {
	admin, err := sarama.NewClusterAdminFromClient(t.client)
	if err != nil {
		return err
	}
	// The admin is not closed: that would close the client, which is ours.
	presets := letterPresets(user, from)
	names := slices.Sorted(maps.Keys(presets))
	// All of them, all but one, none.
	without := [][]string{nil}
	for _, name := range names {
		without = append(without, []string{name})
	}
	if len(names) > 1 {
		without = append(without, names)
	}
	var first error
	for _, left := range without {
		detail := letterDetail(user, from, presets, left)
		err = admin.CreateTopic(t.name, detail, false)
		switch {
		case err == nil && left != nil:
			t.logger.Error("Dead letter topic created without settings that the broker refuses: letters may be deleted early, or be too large for it", first,
				watermill.LogFields{"settings": left})
			fallthrough
		case err == nil || errors.Is(err, sarama.ErrTopicAlreadyExists):
			return t.awaitLeaders(ctx, int(detail.NumPartitions))
		case !errors.Is(err, sarama.ErrPolicyViolation) && !errors.Is(err, sarama.ErrInvalidConfig) && !errors.Is(err, sarama.ErrInvalidRequest):
			return fmt.Errorf("cannot create it: %w", err)
		case first == nil:
			first = err
		}
	}
	return fmt.Errorf("cannot create it: %w", first)
}

func (t *letterTopic) awaitLeaders(ctx context.Context, partitions int) (err error) {
	for range 50 { // they take a moment
		if err = t.client.RefreshMetadata(t.name); err == nil {
			if writable, werr := t.client.WritablePartitions(t.name); werr == nil && len(writable) >= partitions {
				return nil
			}
		}
		if !wait.For(100*time.Millisecond, ctx.Done()) {
			return context.Cause(ctx)
		}
	}
	return fmt.Errorf("it was created, but has no leaders: %w", err)
}

// letterRoom is how much the headers of a letter may add to a record, in bytes.
const letterRoom = 64 << 10

// letterPresets returns our settings for the topic, without those that the user sets.
func letterPresets(user *sarama.TopicDetail, from source) map[string]string {
	presets := map[string]string{
		"retention.ms": "-1", // it counts from the timestamp of the record, which may be long ago
	}
	if largest, ok := from.settings.Number(maxMessageBytes); ok {
		presets[maxMessageBytes] = strconv.FormatInt(largest+letterRoom, 10)
	}
	for name := range user.ConfigEntries {
		delete(presets, name)
	}
	return presets
}

// letterDetail returns the user's detail with defaults, and the presets except those in left.
func letterDetail(user *sarama.TopicDetail, from source, presets map[string]string, left []string) *sarama.TopicDetail {
	detail := *user
	if detail.NumPartitions == 0 {
		detail.NumPartitions = int32(from.partitions)
	}
	if detail.ReplicationFactor == 0 {
		detail.ReplicationFactor = -1
	}
	detail.ConfigEntries = maps.Clone(detail.ConfigEntries)
	if detail.ConfigEntries == nil {
		detail.ConfigEntries = map[string]*string{}
	}
	for name, value := range presets {
		if !slices.Contains(left, name) {
			detail.ConfigEntries[name] = &value
		}
	}
	return &detail
}

const (
	maxMessageBytes = "max.message.bytes"
	timestampType   = "message.timestamp.type"
	timestampBefore = "message.timestamp.before.max.ms"
	timestampAfter  = "message.timestamp.after.max.ms"
	timestampBounds = "message.timestamp.difference.max.ms" // for both, before Kafka 4
	cleanupPolicy   = "cleanup.policy"
	compressionType = "compression.type"
)

// compared are the settings because of which one topic may accept less than another.
var compared = []string{maxMessageBytes, timestampType, timestampBefore, timestampAfter, timestampBounds, cleanupPolicy, compressionType}

// compare logs what the source topic accepts and the dead letter topic does not. It is no
// reason not to subscribe: such records may never come, or never be rejected.
func (t *letterTopic) compare(from source) {
	settings, err := topic.Ask(t.client, t.name, compared...)
	if err != nil {
		t.logger.Debug("The dead letter topic's settings cannot be asked for", watermill.LogFields{"err": err.Error()})
		return
	}
	if limit, ok := settings.Number(maxMessageBytes); ok && limit <= math.MaxInt32 {
		t.limit = int(limit)
	}
	less := acceptsLess(from.settings, settings)
	for _, setting := range slices.Sorted(maps.Keys(less)) {
		t.logger.Error("Dead letter topic accepts less than its source: letters may be refused for good, and hold the commits of their partition. Change the topic, or set SubscriberConfig.OnUnstorable",
			errors.New(less[setting]), watermill.LogFields{"setting": setting, "value": settings[setting]})
	}
}

// acceptsLess returns the reasons by setting. from is nil if it is not known.
func acceptsLess(from, to topic.Settings) map[string]string {
	why := map[string]string{}
	ours, okOurs := from.Number(maxMessageBytes)
	if theirs, ok := to.Number(maxMessageBytes); ok && okOurs && theirs < ours {
		why[maxMessageBytes] = fmt.Sprintf("records of up to %d bytes may come, letters of up to %d are stored", ours, theirs)
	}
	if to[compressionType] == "uncompressed" && from[compressionType] != "uncompressed" {
		why[compressionType] = "records that their producer compressed may be too large uncompressed"
	}
	if to[timestampType] != "LogAppendTime" {
		for _, setting := range []string{timestampBefore, timestampBounds} {
			if theirs, ok := to.Number(setting); ok && theirs < math.MaxInt64 {
				why[setting] = fmt.Sprintf("a letter has its record's timestamp: one that is older than %d ms is refused", theirs)
				break
			}
		}
		ours, okOurs := from.Number(timestampAfter)
		if theirs, ok := to.Number(timestampAfter); ok && okOurs && theirs < ours && from[timestampType] != "LogAppendTime" {
			why[timestampAfter] = fmt.Sprintf("records up to %d ms ahead of the clock may come, letters up to %d ms are stored", ours, theirs)
		}
	}
	if strings.Contains(to[cleanupPolicy], "compact") {
		why[cleanupPolicy] = "a letter without a key is refused, and of those with the same key only the last one is kept"
	}
	return why
}
