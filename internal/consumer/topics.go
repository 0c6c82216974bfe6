package consumer

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// topics are those that a subscription reads: the ones it was given by name, whether or not they
// exist, and of those that its patterns match the ones that do.
type topics struct {
	cfg *Config

	mu     sync.Mutex
	looked bool     // somebody has looked for topics that the patterns match
	names  []string // in order; replaced, not changed
	joined []string // those that the group was last joined for and that existed, as far as was known
	known  map[string]*identity
	dead   map[string]struct{} // where the letters of topics go
}

// identity says which topic of a name a subscription reads, over all of its sessions.
type identity struct {
	read    sarama.Uuid   // the topic that positions belong to; zero before the first response
	now     sarama.Uuid   // the topic that exists
	past    []sarama.Uuid // earlier topics: a broker that lags may still return them
	absent  time.Time     // since when it does not exist; zero if it does, or nobody has looked
	fresh   bool          // one of several topics, and created while we were subscribed: nothing in it is old
	cluster uint32        // see ledger.Ledger
}

// recreated reports whether positions belong to an earlier topic than the one that exists.
func (i *identity) recreated() bool { return i.now != i.read }

// replaced reports whether there was an earlier topic of the name, or none. If so, and the group has nothing stored for
// a partition, no member has started to read it.
func (i *identity) replaced() bool { return len(i.past) > 0 || i.fresh }

// unread reports whether the topic was created while we were subscribed, and never before.
func (i *identity) unread() bool { return i.fresh && len(i.past) == 0 }

// other reports whether a topic of this name and cluster is not the one that exists.
func (i *identity) other(id sarama.Uuid, cluster uint32) bool {
	unknown := sarama.Uuid{}
	return id != i.now && id != unknown && i.now != unknown && cluster == i.cluster && cluster != 0
}

func newTopics(cfg *Config) *topics {
	t := &topics{cfg: cfg, known: map[string]*identity{}, dead: map[string]struct{}{}}
	t.names = slices.Sorted(slices.Values(cfg.Topics.Names))
	for _, name := range t.names {
		t.known[name] = &identity{}
	}
	return t
}

// of returns what is known of a topic now.
func (t *topics) of(name string) *identity {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := t.known[name]; i != nil {
		return new(*i)
	}
	return &identity{} // refused by groupHandler.refuse
}

// list returns the names in order.
func (t *topics) list() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.names
}

// join returns the names, for which the group is about to be joined.
func (t *topics) join() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.joined = slices.DeleteFunc(slices.Clone(t.names), func(name string) bool { return !t.known[name].absent.IsZero() })
	return t.names
}

// changed reports whether topics have come or gone since the group was joined. If there is only one, sarama notices.
func (t *topics) changed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	came := func(name string) bool { return t.known[name].absent.IsZero() && !slices.Contains(t.joined, name) }
	left := func(name string) bool { return !slices.Contains(t.names, name) }
	return t.cfg.several() && (slices.ContainsFunc(t.names, came) || slices.ContainsFunc(t.joined, left))
}

// recreated returns the topics whose positions belong to earlier ones of the same names, with their ids.
func (t *topics) recreated() map[string]sarama.Uuid {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := map[string]sarama.Uuid{}
	for _, name := range t.names {
		if i := t.known[name]; i.recreated() {
			ids[name] = i.now
		}
	}
	return ids
}

// restarted records that all positions in a topic belong to the one with this id from now on.
func (t *topics) restarted(name string, id sarama.Uuid) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[name].read = id
}

// saw records that a topic exists. It reports whether it is one that was not seen before, in place of another.
func (t *topics) saw(name string, id sarama.Uuid, cluster uint32) (recreated bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.known[name]
	if !i.absent.IsZero() && t.cfg.several() && !slices.Contains(t.joined, name) {
		i.fresh = true
	}
	i.absent, i.cluster = time.Time{}, cluster
	switch {
	case id == i.now || id == (sarama.Uuid{}) || slices.Contains(i.past, id):
		return false
	case i.now == (sarama.Uuid{}):
		i.read, i.now = id, id
		return false
	}
	i.past, i.now = append(i.past, i.now), id
	return true
}

// missing records that a topic does not exist, and returns since when. A broker that has just started may not know one
// that is there all the time, which its id shows.
func (t *topics) missing(name string) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.known[name]
	if i.absent.IsZero() {
		i.absent = time.Now()
	}
	if i.now == (sarama.Uuid{}) {
		t.joined = slices.DeleteFunc(t.joined, func(other string) bool { return other == name })
	}
	return i.absent
}

// found takes those up that exist and are matched by a pattern. Dead letter topics are not: their
// letters would come back forever. It returns the new ones.
func (t *topics) found(all map[string]*sarama.TopicMetadata) (added []string) {
	var matched []string
	for name, of := range all {
		if !of.IsInternal && of.Err != sarama.ErrUnknownTopicOrPartition && t.cfg.Topics.Matches(name) {
			matched = append(matched, name)
		}
	}
	slices.Sort(matched)
	var dead []string
	if t.cfg.Letters != nil { // it is code of the application
		for _, name := range slices.Concat(t.cfg.Topics.Names, matched) {
			dead = append(dead, slices.DeleteFunc(t.cfg.Letters(name), func(to string) bool { return to == name })...) // the letters themselves are refused
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
			i := t.known[name]
			i.absent, i.fresh = time.Time{}, i.fresh || t.looked
		}
	}
	t.looked = true
	t.names = slices.Sorted(slices.Values(slices.Concat(kept, added)))
	return added
}

// gone gives a topic up that a pattern matched.
func (t *topics) gone(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names = slices.DeleteFunc(slices.Clone(t.names), func(other string) bool { return other == name })
}

// matched reports whether a topic is read because a pattern matches it.
func (t *topics) matched(name string) bool { return !slices.Contains(t.cfg.Topics.Names, name) }

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
