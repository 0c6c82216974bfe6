package commit

import (
	"errors"
	"slices"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// Transaction is what one request stores: offsets, with the output of the records that they
// cover.
type Transaction struct {
	Member     string
	Generation int32
	InstanceID *string
	Parts      []Part
}

// Part is what a Transaction stores for one partition.
type Part struct {
	Topic     string
	Partition int32
	Offset    int64
	Metadata  string
	Output    []partition.Output
}

// Unknown is the error of a transaction that may or may not be stored.
type Unknown struct{ Err error }

func (u *Unknown) Error() string {
	return "it is not known whether the transaction is stored: " + u.Err.Error()
}
func (u *Unknown) Unwrap() error { return u.Err }

// errCrowded is the error of a partition whose marks do not all fit into the metadata.
var errCrowded = errors.New("the metadata of a commit has no room for all that is settled, and a transaction stores all or nothing: it waits until older records are settled")

// crowded reports whether a due does not say of every settled record that it is settled. With
// less, the output of a record could be stored before that of an earlier one with the same key.
// It is tried again when older records are settled.
func (c *Committer) crowded(d due) bool {
	if d.snapshot.Left() == 0 {
		return false
	}
	d.err = errCrowded
	c.landed(d, 0)
	d.source.cfg.Crowded()
	return true
}

// transact stores what is due in one transaction. It returns as send does: the same for all partitions, and as sent
// only what may be stored without a response.
func (c *Committer) transact(dues []due) (errs []error, sent bool, err error) {
	t := Transaction{Member: dues[0].member, Generation: dues[0].generation, InstanceID: c.cfg.InstanceID}
	for _, d := range dues {
		t.Parts = append(t.Parts, Part{d.source.cfg.Topic, d.source.cfg.Partition, d.snapshot.Offset, d.text, d.snapshot.Output()})
	}
	err = c.cfg.Transact(c.stop, t)
	if err == nil || errors.Is(err, sarama.ErrOffsetMetadataTooLarge) {
		return slices.Repeat([]error{err}, len(dues)), true, nil
	}
	return nil, errors.As(err, new(*Unknown)), err
}

// byTopic returns the dues of each topic.
func byTopic(dues []due) map[string][]due {
	topics := map[string][]due{}
	for _, d := range dues {
		topics[d.source.cfg.Topic] = append(topics[d.source.cfg.Topic], d)
	}
	return topics
}
