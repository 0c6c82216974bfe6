package transactions

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
)

// The states of a transaction that is open in a partition and that no coordinator shows. The other
// states are Kafka's.
const (
	Hanging = "Hanging" // no coordinator knows it, and none will end it
	Unknown = "Unknown" // it hangs, or the user may not see its id
)

// Transaction is one of a transactional producer.
type Transaction struct {
	ID         string     `json:"id,omitempty"` // "" if it is Hanging or Unknown
	State      string     `json:"state"`
	Since      *time.Time `json:"since,omitempty"`
	TimeoutMS  int64      `json:"timeout_ms,omitempty"`
	ProducerID int64      `json:"producer_id"`
	Epoch      int16      `json:"producer_epoch"`
	Partitions []Place    `json:"partitions"`
}

// Place is a partition that a transaction has written to.
type Place struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Start     *int64 `json:"start_offset,omitempty"` // of one that is Hanging or Unknown

	coordinatorEpoch int32
}

func (t Transaction) hangs() bool { return t.State == Hanging }

func (t Transaction) open() bool {
	return t.hangs() || t.State == Unknown || t.State == "Ongoing" || strings.HasPrefix(t.State, "Prepare")
}

func (t Transaction) has(topic string, partition int32) bool {
	return slices.ContainsFunc(t.Partitions, func(p Place) bool { return p.Topic == topic && p.Partition == partition })
}

func (t Transaction) topics() []string {
	topics := map[string]bool{}
	for _, p := range t.Partitions {
		topics[p.Topic] = true
	}
	return slices.Sorted(maps.Keys(topics))
}

// contains reports whether the transactions have that one, with that partition.
func contains(all []Transaction, t Transaction, place Place) bool {
	return slices.ContainsFunc(all, func(o Transaction) bool {
		return o.ProducerID == t.ProducerID && o.Epoch == t.Epoch && slices.ContainsFunc(o.Partitions, func(p Place) bool {
			return p.Topic == place.Topic && p.Partition == place.Partition && *p.Start == *place.Start
		})
	})
}

func only(all []Transaction, wanted func(Transaction) bool) (some []Transaction) {
	for _, t := range all {
		if wanted(t) {
			some = append(some, t)
		}
	}
	return some
}

// look asks Kafka for transactions.
type look struct {
	client sarama.Client
	admin  sarama.ClusterAdmin
}

func newLook(client sarama.Client) (*look, error) {
	admin, err := sarama.NewClusterAdminFromClient(client)
	return &look{client, admin}, err
}

func (l *look) close() { _ = l.admin.Close() }

func (l *look) transactions() sarama.TransactionClusterAdmin {
	return l.admin.(sarama.TransactionClusterAdmin)
}

// find returns the transactions of ids with one of the prefixes, those that are open in the
// topics, and those that hang among the offsets of the group.
func (l *look) find(prefixes []string, group string, topics []string) ([]Transaction, error) {
	listed, err := l.transactions().ListTransactions(nil, nil, -1)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, t := range listed {
		if slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(t.TransactionalID, prefix) }) {
			ids = append(ids, t.TransactionalID)
		}
	}
	found, err := l.described(ids)
	if err != nil {
		return nil, err
	}
	places, err := l.places(topics)
	if err != nil {
		return nil, err
	}
	inTopics, hanging, err := l.openIn(places)
	if err != nil {
		return nil, err
	}
	for _, t := range inTopics {
		if !slices.Contains(ids, t.ID) {
			found = append(found, t)
		}
	}
	if group != "" {
		offsets, err := l.offsetsOf(group)
		if err != nil {
			return nil, err
		}
		_, more, err := l.openIn(offsets)
		if err != nil {
			return nil, err
		}
		hanging = append(hanging, more...)
	}
	slices.SortFunc(found, func(a, b Transaction) int { return cmp.Compare(a.ID, b.ID) })
	return append(found, hanging...), nil
}

// hanging returns the transactions that hang in the topics.
func (l *look) hanging(topics []string) ([]Transaction, error) {
	places, err := l.places(topics)
	if err != nil {
		return nil, err
	}
	_, hanging, err := l.openIn(places)
	return hanging, err
}

func (l *look) places(topics []string) (map[string][]int32, error) {
	found, err := kafka.Topics(l.client, topics)
	if err != nil {
		return nil, err
	}
	places := map[string][]int32{}
	for _, name := range topics {
		t, ok := found[name]
		if !ok {
			return nil, fmt.Errorf("topic %s: %w", name, kafka.ErrNoTopic)
		}
		places[name] = t.Partitions
	}
	return places, nil
}

const offsetsTopic = "__consumer_offsets"

// offsetsOf returns the partition that has the offsets of a group, nothing if the broker has
// no topic for them.
func (l *look) offsetsOf(group string) (map[string][]int32, error) {
	found, err := kafka.Topics(l.client, []string{offsetsTopic})
	if err != nil {
		return nil, err
	}
	n := len(found[offsetsTopic].Partitions)
	if n == 0 {
		return nil, nil
	}
	hash := int32(0) // Java's of a string
	for _, c := range utf16.Encode([]rune(group)) {
		hash = 31*hash + int32(c)
	}
	return map[string][]int32{offsetsTopic: {hash & 0x7fffffff % int32(n)}}, nil
}

const errNoID = sarama.KError(105) // TRANSACTIONAL_ID_NOT_FOUND, which sarama does not name

// described returns what the coordinators know.
func (l *look) described(ids []string) (all []Transaction, err error) {
	states, err := l.transactions().DescribeTransactions(ids)
	if err != nil {
		return nil, err
	}
	for id, s := range states {
		switch {
		case s.ErrorCode == errNoID: // it has expired meanwhile
			continue
		case s.ErrorCode != sarama.ErrNoError:
			return nil, fmt.Errorf("transactional id %s: %w", id, s.ErrorCode)
		}
		t := Transaction{
			ID: id, State: s.TransactionState, Since: at(s.TransactionStartTime), TimeoutMS: s.TransactionTimeout.Milliseconds(),
			ProducerID: s.ProducerID, Epoch: s.ProducerEpoch, Partitions: []Place{},
		}
		for _, topic := range s.Topics {
			for _, p := range topic.Partitions {
				t.Partitions = append(t.Partitions, Place{Topic: topic.Topic, Partition: p})
			}
		}
		slices.SortFunc(t.Partitions, comparePlaces)
		all = append(all, t)
	}
	return all, nil
}

func comparePlaces(a, b Place) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}

// openIn returns the transactions that are open in partitions: those that a coordinator knows,
// and those that hang, or may hang.
//
// A leader learns of a transaction after its coordinator, and of its end before. So a
// transaction hangs if it is open at the leader before and after its coordinator does not know it.
func (l *look) openIn(places map[string][]int32) (known, hanging []Transaction, err error) {
	before, err := l.producers(places)
	if err != nil || len(before) == 0 {
		return nil, nil, err
	}
	var producers []int64
	for p := range before {
		producers = append(producers, p.producer)
	}
	listed, err := l.transactions().ListTransactions(nil, producers, -1)
	if err != nil {
		return nil, nil, err
	}
	var ids []string
	for _, t := range listed {
		ids = append(ids, t.TransactionalID)
	}
	if known, err = l.described(ids); err != nil {
		return nil, nil, err
	}
	known = only(known, Transaction.open)
	after, err := l.producers(places)
	if err != nil {
		return nil, nil, err
	}
	state := Hanging
	if all, err := l.seesAll(); err != nil {
		return nil, nil, err
	} else if !all {
		state = Unknown
	}
	byProducer := map[[2]int64]*Transaction{}
	for p, s := range before {
		still, ok := after[p]
		owned := slices.ContainsFunc(known, func(t Transaction) bool { return t.ProducerID == p.producer && t.has(p.topic, p.partition) })
		if !ok || owned || still.CurrentTxnStartOffset != s.CurrentTxnStartOffset {
			continue
		}
		key := [2]int64{p.producer, int64(s.ProducerEpoch)}
		t := byProducer[key]
		if t == nil {
			t = &Transaction{State: state, ProducerID: p.producer, Epoch: int16(s.ProducerEpoch)}
			byProducer[key] = t
		}
		if since := at(s.LastTimestamp); t.Since == nil || since != nil && since.After(*t.Since) {
			t.Since = since
		}
		t.Partitions = append(t.Partitions, Place{p.topic, p.partition, &s.CurrentTxnStartOffset, s.CoordinatorEpoch})
	}
	for _, t := range byProducer {
		slices.SortFunc(t.Partitions, comparePlaces)
		hanging = append(hanging, *t)
	}
	slices.SortFunc(hanging, func(a, b Transaction) int { return cmp.Compare(a.ProducerID, b.ProducerID) })
	return known, hanging, nil
}

// seesAll reports whether the user may see all transactional ids. A list of transactions lacks those
// that the user may not see, and says nothing of it.
func (l *look) seesAll() (bool, error) {
	id := "ackpolicy-" + rand.Text() // nobody has a right to just this one
	states, err := l.transactions().DescribeTransactions([]string{id})
	if errors.Is(err, sarama.ErrTransactionalIDAuthorizationFailed) || states[id].ErrorCode == sarama.ErrTransactionalIDAuthorizationFailed {
		return false, nil
	}
	return true, err
}

// writer is a producer with an open transaction in a partition.
type writer struct {
	topic     string
	partition int32
	producer  int64
}

func (l *look) producers(places map[string][]int32) (map[writer]sarama.ProducerState, error) {
	described, err := l.transactions().DescribeProducers(places)
	if err != nil {
		return nil, err
	}
	open := map[writer]sarama.ProducerState{}
	for topic, partitions := range places {
		for _, p := range partitions {
			d, ok := described[topic][p]
			if !ok {
				return nil, fmt.Errorf("%s, partition %d: %w", topic, p, sarama.ErrIncompleteResponse)
			}
			if d.ErrorCode != sarama.ErrNoError {
				return nil, fmt.Errorf("%s, partition %d: %w", topic, p, d.ErrorCode)
			}
			for _, s := range d.ActiveProducers {
				if s.CurrentTxnStartOffset >= 0 {
					open[writer{topic, p, s.ProducerID}] = s
				}
			}
		}
	}
	return open, nil
}

func at(ms int64) *time.Time {
	if ms <= 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}
