package consumer

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/topic"
)

// emptySession is one without partitions.
type emptySession struct{ sarama.ConsumerGroupSession }

func (emptySession) Claims() map[string][]int32 { return nil }

// A new topic that is seen as a session begins ends it, whichever comes first: nobody would look again.
func TestNewTopicAsASessionBegins(t *testing.T) {
	known, cancel := context.WithCancel(context.Background())
	cancel()
	for range 20000 {
		s := &Subscription{base: &base{cfg: &Config{Sarama: sarama.NewConfig()}}, topics: newTopics(&Config{Topics: topic.Selection{Names: []string{"orders"}}})}
		s.topics.saw("orders", sarama.Uuid{1}, 0)
		session, end := context.WithCancelCause(context.Background())
		h := &groupHandler{s: s, watch: &topicWatch{ctx: known}, committer: &commit.Committer{}, endSession: end}
		var watch sync.WaitGroup
		watch.Go(func() {
			s.topics.saw("orders", sarama.Uuid{2}, 0)
			h.topicRecreated()
		})
		h.begin(emptySession{})
		watch.Wait()
		if !errors.Is(context.Cause(session), errTopicRecreated) {
			t.Fatal("the session continues, in a topic that its positions are not of")
		}
	}
}
