package consumer

import (
	"slices"
	"strings"
	"sync"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/topic"
)

// topics are those that a subscription reads: the ones it was given by name, whether or not they
// exist, and of those that its patterns match the ones that do.
type topics struct {
	selection topic.Selection
	letters   func(topic string) []string // see Config

	mu      sync.Mutex
	looked  bool     // somebody has looked for topics that the patterns match
	names   []string // in order; replaced, not changed
	version int      // changes when topics come or go
	known   map[string]*identity
	dead    map[string]struct{} // where the letters of topics go
}

func newTopics(cfg *Config) *topics {
	t := &topics{selection: cfg.Topics, letters: cfg.Letters, known: map[string]*identity{}, dead: map[string]struct{}{}}
	t.names = slices.Sorted(slices.Values(cfg.Topics.Names))
	return t
}

// of returns what is known of a topic.
func (t *topics) of(name string) *identity {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[name] == nil {
		t.known[name] = &identity{}
	}
	return t.known[name]
}

// list returns the names in order.
func (t *topics) list() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.names
}

// joining returns the names, and the version to which they belong.
func (t *topics) joining() ([]string, int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.names, t.version
}

// changed reports whether topics have come or gone since a version.
func (t *topics) changed(since int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version != since
}

// recreated returns the topics whose positions belong to earlier ones of the same names.
func (t *topics) recreated() (names []string) {
	for _, name := range t.list() {
		if _, recreated := t.of(name).recreated(); recreated {
			names = append(names, name)
		}
	}
	return names
}

// found takes those up that exist and are matched by a pattern. Dead letter topics are not: their
// letters would come back forever. It returns the new ones.
func (t *topics) found(all map[string]*sarama.TopicMetadata) (added []string) {
	var matched []string
	for name, of := range all {
		if !of.IsInternal && of.Err != sarama.ErrUnknownTopicOrPartition && t.selection.Matches(name) {
			matched = append(matched, name)
		}
	}
	slices.Sort(matched)
	var dead []string
	if t.letters != nil { // it is code of the application
		for _, name := range slices.Concat(t.selection.Names, matched) {
			dead = append(dead, slices.DeleteFunc(t.letters(name), func(to string) bool { return to == name })...) // the letters themselves are refused
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range dead {
		t.dead[name] = struct{}{}
	}
	kept := slices.DeleteFunc(slices.Clone(t.names), func(name string) bool { // its letters were not known before
		_, dead := t.dead[name]
		return dead && t.matched(name)
	})
	for _, name := range matched {
		if _, dead := t.dead[name]; !dead && !slices.Contains(kept, name) {
			added = append(added, name)
			if t.known[name] == nil {
				t.known[name] = &identity{}
			}
			t.known[name].found(!t.looked)
		}
	}
	t.looked = true
	if len(added) > 0 || len(kept) < len(t.names) {
		t.names = slices.Sorted(slices.Values(slices.Concat(kept, added)))
		t.version++
	}
	return added
}

// gone gives a topic up that a pattern matched.
func (t *topics) gone(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names = slices.DeleteFunc(slices.Clone(t.names), func(other string) bool { return other == name })
	t.version++
}

// appeared records that a topic which did not exist does now.
func (t *topics) appeared() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version++
}

// matched reports whether a topic is read because a pattern matches it.
func (t *topics) matched(name string) bool { return !slices.Contains(t.selection.Names, name) }

// find takes up the topics that the patterns match, when the subscription starts.
func (s *Subscription) find(client sarama.Client) (err error) {
	if !s.cfg.Topics.Patterns() {
		return nil
	}
	for range max(1, s.cfg.Sarama.Metadata.Retry.Max+1) { // each asks any broker
		var all map[string]*sarama.TopicMetadata
		if all, _, err = topicsNow(client, nil); err == nil {
			s.takeUp(all)
			return nil
		}
	}
	return err
}

// takeUp takes up the topics that the patterns match.
func (s *Subscription) takeUp(all map[string]*sarama.TopicMetadata) {
	if added := s.topics.found(all); len(added) > 0 {
		s.cfg.Logger.Info("Topics that match were found and are read", watermill.LogFields{"topics_found": strings.Join(added, ", ")})
	}
}

// topicsNow returns what the broker knows of topics, of all of them if names is nil, and the checksum of the cluster's
// id. A topic's id is zero if the broker or Config.Version is older than 2.8.
func topicsNow(client sarama.Client, names []string) (map[string]*sarama.TopicMetadata, uint32, error) {
	broker := client.LeastLoadedBroker()
	if broker == nil {
		return nil, 0, sarama.ErrOutOfBrokers
	}
	response, err := broker.GetMetadata(sarama.NewMetadataRequest(client.Config().Version, names))
	if err != nil {
		_ = broker.Close()
		return nil, 0, err
	}
	cluster := uint32(0)
	if response.ClusterID != nil {
		cluster = ledger.ClusterOf(*response.ClusterID)
	}
	all := map[string]*sarama.TopicMetadata{}
	for _, t := range response.Topics {
		all[t.Name] = t
	}
	return all, cluster, nil
}
