package commit

import (
	"errors"
	"time"

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

// joint is the error of a transaction about several topics that was refused for good, because of
// one of them. It says nothing about the others.
type joint struct{ err error }

func (j *joint) Error() string { return j.err.Error() }

// errCrowded is the error of a partition whose marks do not all fit into the metadata.
var errCrowded = errors.New("the metadata of a commit has no room for all that is settled, and a transaction stores all or nothing: it waits until older records are settled")

// whole returns the dues that say of every settled record that it is settled. With less, the
// output of a record could be stored before that of an earlier one with the same key. The
// others are tried again when older records are settled.
func (c *Committer) whole(dues []due) []due {
	var whole []due
	for _, d := range dues {
		if d.snapshot.Left() == 0 {
			whole = append(whole, d)
			continue
		}
		cfg := &d.source.cfg
		attempt, _ := d.source.landed(outcome{snapshot: d.snapshot, err: errCrowded})
		cfg.Crowded()
		c.cfg.Tried(cfg.Topic, cfg.Partition, d.snapshot.Offset, errCrowded)
		c.cfg.Failed(cfg.Topic, cfg.Partition, d.snapshot.Offset, errCrowded, attempt, 0)
	}
	return whole
}

// apart returns a topic that is to have a transaction of its own: its last one was refused for
// good, perhaps because of another topic. A transaction is refused as a whole.
func (c *Committer) apart(now time.Time) (topic string, ok bool) {
	if c.cfg.Transact == nil {
		return "", false
	}
	for s := range c.sources {
		if s.retryAt.After(now) || !lasts(s.failure) && !errors.As(s.failure, new(*joint)) {
			continue
		}
		if _, ok := s.dirty(); ok {
			return s.cfg.Topic, true
		}
	}
	return "", false
}

// transact stores what is due in one transaction. It returns as send does: the same error for
// all partitions, and as sent only what may be stored without a response.
func (c *Committer) transact(dues []due, member string, generation int32) (errs map[string]map[int32]sarama.KError, sent bool, err error) {
	t := Transaction{Member: member, Generation: generation, InstanceID: c.cfg.InstanceID}
	errs = map[string]map[int32]sarama.KError{}
	for _, d := range dues {
		cfg := &d.source.cfg
		t.Parts = append(t.Parts, Part{cfg.Topic, cfg.Partition, d.snapshot.Offset, d.text, d.snapshot.Output()})
		if errs[cfg.Topic] == nil {
			errs[cfg.Topic] = map[int32]sarama.KError{}
		}
		errs[cfg.Topic][cfg.Partition] = sarama.ErrNoError
	}
	if err = c.cfg.Transact(c.stop, t); err == nil {
		return errs, true, nil
	}
	if errors.Is(err, sarama.ErrOffsetMetadataTooLarge) {
		for _, partitions := range errs {
			for p := range partitions {
				partitions[p] = sarama.ErrOffsetMetadataTooLarge
			}
		}
		return errs, true, nil
	}
	if lasts(err) && len(errs) > 1 {
		err = &joint{err}
	}
	return nil, errors.As(err, new(*Unknown)), err
}
