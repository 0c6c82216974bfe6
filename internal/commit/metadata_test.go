package commit

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// storedText returns the metadata that the broker stores with the offset.
func (b *bed) storedText(t *testing.T) string {
	t.Helper()
	response, err := fetchOffsets(b.client, b.group, map[string][]int32{b.topic: {0}}, false)
	if err != nil {
		t.Fatal(err)
	}
	return response.GetBlock(b.topic, 0).Metadata
}

// What has become of open records is stored though the offset stays.
func TestMetadataIsStored(t *testing.T) {
	b := newBed(t, true, false)
	b.move(3, 3)
	b.text = "first"
	if err := b.s.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if got := b.storedText(t); got != "first" {
		t.Fatalf("stored %q", got)
	}
	b.mu.Lock()
	b.mark, b.text = partition.Mark{Offset: 3, Seq: 3, Version: 4}, "second"
	b.mu.Unlock()
	if err := b.s.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if got := b.storedText(t); got != "second" {
		t.Errorf("stored %q", got)
	}
}

// A broker that takes less metadata than its default gets less, and the commit continues.
func TestMetadataFitsTheBroker(t *testing.T) {
	for _, room := range []int{1000, 10, 0} {
		b := newBed(t, true, false)
		b.broker.Kfake().ControlKey(int16(commitKey), func(request kmsg.Request) (kmsg.Response, error, bool) {
			b.broker.Kfake().KeepControl()
			commit := request.(*kmsg.OffsetCommitRequest)
			if text := commit.Topics[0].Partitions[0].Metadata; text == nil || len(*text) <= room {
				return nil, nil, false
			}
			response := commit.ResponseKind().(*kmsg.OffsetCommitResponse)
			topic := kmsg.NewOffsetCommitResponseTopic()
			topic.Topic = b.topic
			p := kmsg.NewOffsetCommitResponseTopicPartition()
			p.ErrorCode = kerr.OffsetMetadataTooLarge.Code
			topic.Partitions = append(topic.Partitions, p)
			response.Topics = append(response.Topics, topic)
			return response, nil, true
		})
		b.move(3, 3)
		b.text = strings.Repeat("x", 4000)
		if err := b.s.Flush(deadline(t)); err != nil {
			t.Fatalf("room for %d: %v", room, err)
		}
		b.wantStored(t, 3)
		if got := len(b.storedText(t)); got > room || got < room/4 {
			t.Errorf("room for %d: %d stored", room, got)
		}
	}
}
