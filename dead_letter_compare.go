package ackpolicy

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/topic"
)

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
