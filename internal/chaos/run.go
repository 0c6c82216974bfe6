package chaos

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

const (
	stall       = time.Hour
	slowNetwork = 60 * time.Millisecond
	// patience is how long nothing may happen at the end, when the group handles all that is left.
	patience = 90 * time.Second
)

// Run runs a group through a schedule, and returns its ledger. Topic, Group and Brokers are the spec's.
func Run(spec Spec, schedule []Action, cluster *Cluster) (*Record, error) {
	ledger, err := OpenLedger(spec.Dir, Parent)
	if err != nil {
		return nil, err
	}
	defer ledger.Close()
	defer cluster.join(ledger)()
	topics := []string{spec.Topic}
	if spec.letters() {
		topics = append(topics, spec.letterTopic())
	}
	if spec.Output != "" {
		topics = append(topics, spec.outputTopic())
	}
	for _, topic := range topics {
		if err := brokertest.CreateTopic(spec.Brokers, topic, partitions); err != nil {
			return nil, err
		}
	}
	f := &fleet{spec: spec, ledger: ledger, cluster: cluster}
	defer f.abandon()
	for slot := range slots {
		if err := f.start(slot); err != nil {
			return nil, err
		}
	}
	if err := f.awaitMembers(); err != nil {
		return nil, err
	}
	p, err := brokertest.StartProducer(spec.Brokers, brokertest.Load{
		Topic: spec.Topic, Partitions: partitions, Rate: spec.rate(),
		Key:    func(partition int32, offset int64) string { return spec.key(ID{partition, offset}) },
		Stored: func(partition int32, offset int64, key string) { ledger.Write(Produced, ID{partition, offset}, 0, key) },
	})
	if err != nil {
		return nil, err
	}
	watched := make(chan struct{})
	defer close(watched)
	go ledger.watch(watched)
	f.perform(schedule)
	f.err = errors.Join(f.err, f.revive())
	ends, err := p.Finish()
	if err = errors.Join(f.err, err); err != nil {
		return nil, err
	}
	r := &Record{Spec: spec, Ends: ends}
	if r.Stored, err = f.awaitStored(ends); err != nil {
		return nil, err
	}
	f.endAll()
	if err := r.read(); err != nil {
		return nil, err
	}
	if err := r.save(); err != nil {
		return nil, err
	}
	return Load(spec.Dir)
}

// fleet is the members of a group.
type fleet struct {
	spec    Spec
	ledger  *Ledger
	cluster *Cluster

	mu      sync.Mutex
	err     error
	members [joinSlot + 1]*process
	started []*process
}

func (f *fleet) start(slot int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := startProcess(f.spec, len(f.started), f.ledger)
	if err != nil {
		return err
	}
	f.started = append(f.started, p)
	f.members[slot] = p
	return nil
}

// awaitMembers returns once all are in the group.
func (f *fleet) awaitMembers() error {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		n, state, err := brokertest.Members(f.spec.Brokers, f.spec.Group)
		if err == nil && n == slots && state == "Stable" {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("the group has %d members and is %s", n, state))
		}
	}
}

// perform returns after the last action has ended.
func (f *fleet) perform(schedule []Action) {
	began := time.Now()
	var wg sync.WaitGroup
	for slot := range brokerSlot + 1 {
		wg.Go(func() {
			for _, a := range schedule {
				if a.Slot == slot {
					time.Sleep(time.Until(began.Add(a.At)))
					if err := f.do(a); err != nil {
						f.mu.Lock()
						f.err = errors.Join(f.err, fmt.Errorf("%v: %w", a, err))
						f.mu.Unlock()
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

func (f *fleet) do(a Action) error {
	if a.Slot == brokerSlot {
		return f.cluster.do(a)
	}
	if a.Fault == Join {
		if err := f.start(a.Slot); err != nil {
			return err
		}
		time.Sleep(a.For)
		f.member(a.Slot).end(CommandClose)
		return nil
	}
	p := f.member(a.Slot)
	if a.Fault != Kill {
		<-p.up // it cannot subscribe without a network
	}
	switch a.Fault {
	case Restart:
		p.end(CommandClose)
	case Cancel:
		p.end(CommandCancel)
	case Kill:
		p.kill()
	case CutRestart:
		var wg sync.WaitGroup
		wg.Go(func() { p.disturb(Cut, a.For, p.proxy.Cut) })
		p.end(CommandClose)
		wg.Wait()
	case Pause, PauseLong:
		p.pause(a.For)
		return nil
	case Blink, CutLong:
		p.disturb(Cut, a.For, p.proxy.Cut)
		return nil
	case StallLong:
		p.disturb(Stalled, a.For, func() { p.proxy.Delay(stall) })
		return nil
	case Slow:
		p.disturb(Slowed, a.For, func() { p.proxy.Delay(slowNetwork) })
		return nil
	}
	return f.start(a.Slot)
}

func (f *fleet) member(slot int) *process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[slot]
}

// revive starts what has ended by itself, which its Exited reports, so that the run can continue to its end.
func (f *fleet) revive() error {
	for slot := range slots {
		if p := f.member(slot); p.gone() {
			p.end(CommandClose)
			if err := f.start(slot); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitStored returns the stored offsets, once they are the ends or nothing happens for too long.
//
// A group of kfake may not find together for good: each join restarts its rebalance timeout, and members whose
// connections are gone hold a place. There the members restart all at once if nothing happens for long.
func (f *fleet) awaitStored(ends []int64) ([]int64, error) {
	stored := make([]int64, len(ends))
	moved, before, restarts := time.Now(), slices.Clone(stored), 0
	for ; ; time.Sleep(50 * time.Millisecond) {
		all, err := brokertest.CommittedAll(f.spec.Brokers, f.spec.Group, f.spec.Topic)
		for p := range stored {
			stored[p] = -1
			if offset, ok := all[int32(p)]; ok {
				stored[p] = offset
			}
		}
		if err == nil && !slices.Equal(stored, before) {
			moved, before, restarts = time.Now(), slices.Clone(stored), 0
		}
		if (err == nil && slices.Equal(stored, ends)) || time.Since(moved) > patience {
			return stored, nil
		}
		if f.spec.Fake && time.Since(moved) > patience/6*time.Duration(restarts+1) {
			restarts++
			f.endAll()
			for slot := range slots {
				if err := f.start(slot); err != nil {
					return nil, err
				}
			}
		}
	}
}

// endAll ends the members as a deploy does.
func (f *fleet) endAll() {
	var wg sync.WaitGroup
	for slot := range slots {
		wg.Go(func() { f.member(slot).end(CommandClose) })
	}
	wg.Wait()
}

// abandon leaves no process behind, however the run ended.
func (f *fleet) abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.started {
		if !p.gone() {
			p.kill()
		}
	}
}

func oneLine(err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

func compareIDs(a, b ID) int {
	return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
}
