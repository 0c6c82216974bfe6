// Package group shows how far a consumer group of this library has come, and settles
// records for a group that is down.
package group

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// State is what Kafka knows of a group.
type State struct {
	Group        string      `json:"group"`
	State        string      `json:"state"`
	At           time.Time   `json:"at"`
	Members      []Member    `json:"members"`
	CommittedLag int64       `json:"committed_lag"`
	WorkLag      int64       `json:"work_lag"`
	Partitions   []Partition `json:"partitions"`
}

// Member is one of the group's.
type Member struct {
	ID       string `json:"id"`
	Instance string `json:"instance,omitempty"`
	Client   string `json:"client"`
	Host     string `json:"host"`
}

// Partition is how far the group has come in one.
type Partition struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed *int64 `json:"committed"` // null: nothing is
	Start     int64  `json:"log_start"`
	End       int64  `json:"log_end"`
	// CommittedLag is the distance from the committed offset to the end, WorkLag is without the
	// records that have marks. Both count offsets, of which some may hold no record.
	CommittedLag int64 `json:"committed_lag"`
	WorkLag      int64 `json:"work_lag"`
	// Holds is the record that holds the committed offset.
	Holds *Held `json:"holds,omitempty"`
	// Open is how many records were delivered and are not settled, as far as the commit says.
	Open int `json:"open"`
	// LeftCleanly is that the owner which stored the offset had ended its work: only members with
	// MaxDeliveries say so. Deaths is how many owners in a row died.
	LeftCleanly bool   `json:"left_cleanly"`
	Deaths      int    `json:"deaths,omitempty"`
	Member      string `json:"member,omitempty"`
	// Ledger says why the metadata of the commit is not used, if it is not.
	Ledger string `json:"ledger,omitempty"`
}

// Held is a record that is not settled.
type Held struct {
	Offset   int64      `json:"offset"`
	Attempts int        `json:"attempts,omitempty"` // 0: not known, or none ended
	First    *time.Time `json:"first_delivery,omitempty"`
	Due      *time.Time `json:"due,omitempty"` // null: at once, or not known
	InFlight bool       `json:"in_flight,omitempty"`
	Err      string     `json:"last_error,omitempty"` // the beginning of it; "": not known
}

// Look asks Kafka for the state of a group, in one topic or, if that is "", in all.
func Look(ctx context.Context, client sarama.Client, group, topic string, now time.Time) (*State, error) {
	described, err := kafka.Describe(ctx, client, group)
	if err != nil {
		return nil, err
	}
	s := &State{Group: group, State: described.State, At: now.UTC().Truncate(time.Millisecond), Members: []Member{}, Partitions: []Partition{}}
	owners := s.members(described)
	stored, err := kafka.Offsets(ctx, client, group, nil, false)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for name := range stored {
		names[name] = true
	}
	for place := range owners {
		names[place.topic] = true
	}
	if topic != "" {
		names = map[string]bool{topic: true}
	}
	topics, err := kafka.Topics(client, slices.Collect(maps.Keys(names)))
	if err != nil {
		return nil, err
	}
	asked := map[string][]int32{}
	for name, t := range topics {
		for _, p := range t.Partitions {
			_, committed := stored[name][p]
			if _, owned := owners[place{name, p}]; committed || owned || topic != "" {
				asked[name] = append(asked[name], p)
			}
		}
	}
	logs, err := kafka.Logs(ctx, client, asked, sarama.ReadUncommitted)
	if err != nil {
		return nil, err
	}
	for name, partitions := range asked {
		for _, p := range partitions {
			at := Partition{Topic: name, Partition: p, Member: owners[place{name, p}]}
			at.Start, at.End = logs[name][p].From, logs[name][p].To
			if commit, ok := stored[name][p]; ok {
				at.stored(commit, topics[name])
			} else {
				at.CommittedLag = at.End - at.Start
				at.WorkLag = at.CommittedLag
			}
			s.CommittedLag += at.CommittedLag
			s.WorkLag += at.WorkLag
			s.Partitions = append(s.Partitions, at)
		}
	}
	slices.SortFunc(s.Partitions, func(a, b Partition) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return s, s.missing(topic, topics)
}

func (s *State) missing(topic string, topics map[string]kafka.Topic) error {
	_, exists := topics[topic]
	switch {
	case topic != "" && !exists:
		return fmt.Errorf("topic %s: %w", topic, kafka.ErrNoTopic)
	case len(s.Partitions) == 0 && len(s.Members) == 0:
		return fmt.Errorf("there is no group %s: it has neither members nor offsets", s.Group)
	}
	return nil
}

type place struct {
	topic     string
	partition int32
}

// members takes note of the members, and returns who has which partition.
func (s *State) members(described *sarama.GroupDescription) map[place]string {
	owners := map[place]string{}
	for id, m := range described.Members {
		member := Member{ID: id, Client: m.ClientId, Host: m.ClientHost}
		if m.GroupInstanceId != nil {
			member.Instance = *m.GroupInstanceId
		}
		s.Members = append(s.Members, member)
		assignment, err := m.GetMemberAssignment()
		if err != nil || assignment == nil {
			continue
		}
		for topic, partitions := range assignment.Topics {
			for _, p := range partitions {
				owners[place{topic, p}] = id
			}
		}
	}
	slices.SortFunc(s.Members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return owners
}

// stored reads what the group's commit says.
func (p *Partition) stored(commit kafka.Stored, topic kafka.Topic) {
	p.Committed = &commit.Offset
	from := max(commit.Offset, p.Start)
	p.CommittedLag = max(0, p.End-commit.Offset)
	p.WorkLag = max(0, p.End-from)
	l, err := read(ledger.Place{Topic: p.Topic, Partition: p.Partition, Offset: commit.Offset}, commit.Metadata, topic)
	if err != nil {
		if !errors.Is(err, ledger.ErrNone) {
			p.Ledger = err.Error()
		}
		l = &ledger.Ledger{}
	}
	p.Open, p.LeftCleanly, p.Deaths = len(l.Open), l.Clean, l.Crashes
	held := from
	for _, b := range l.Blocks {
		for _, r := range b.Runs {
			p.WorkLag -= max(0, min(r.To, p.End)-max(r.From, from))
			if r.From <= held {
				held = max(held, r.To)
			}
		}
	}
	if held >= p.End {
		return
	}
	p.Holds = &Held{Offset: held}
	for _, o := range l.Open {
		if o.Offset == held {
			p.Holds.Attempts, p.Holds.InFlight, p.Holds.Err = o.Attempts, o.InFlight, o.Err
			p.Holds.First, p.Holds.Due = known(o.First), known(o.Due)
		}
	}
}

var errOtherTopic = errors.New("it was stored for an earlier topic of this name")

// read reads a ledger as a member does. The error is why it is not used.
func read(at ledger.Place, metadata string, topic kafka.Topic) (*ledger.Ledger, error) {
	l, err := ledger.Decode(at, metadata)
	unknown := [16]byte{}
	switch {
	case err != nil:
		return nil, err
	case l.Kind != ledger.Consumer:
		return nil, ledger.ErrForeign
	case l.TopicID != topic.ID && l.TopicID != unknown && topic.ID != unknown:
		return nil, errOtherTopic
	}
	return l, nil
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
