package simulation

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	broker = "127.0.0.1:9092"
	topic  = "topic"
	group  = "group"

	patience = 3 * time.Minute // for what is left after the storm
	drained  = time.Minute     // until nothing of a closed member runs any more
)

// world is a history: a broker, a network, members, and the judge who sees all of it.
type world struct {
	plan
	network  *network
	cluster  *kfake.Cluster
	goes     sync.WaitGroup // all that members run
	striking sync.WaitGroup
	holding  atomic.Int64 // how long the broker takes to end a transaction, see holdEnd
	began    time.Time

	judge
}

func newWorld(p plan) *world {
	w := &world{plan: p, network: newNetwork(dice(p.seed, 2)), began: time.Now()}
	w.judge.init(w)
	return w
}

// play runs the history, in a bubble.
func (w *world) play(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(9092), kfake.ListenFn(w.network.listen),
		kfake.SeedTopics(w.partitions, topic), kfake.SeedTopics(outputs, output), kfake.SeedTopics(w.partitions, letterTopic),
		kfake.GroupMinSessionTimeout(time.Second))
	check(t, err)
	w.cluster = cluster
	defer cluster.Close()
	w.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit, kmsg.TxnOffsetCommit}, Observe: true, Count: -1, When: w.commits})
	w.cluster.ControlKey(-1, func(r kmsg.Request) (kmsg.Response, error, bool) {
		w.cluster.KeepControl()
		w.asked(r)
		return nil, nil, false
	})
	w.cluster.ControlKey(int16(kmsg.EndTxn), w.held)
	ended := make(chan struct{})
	var sweeper sync.WaitGroup
	sweeper.Go(func() { w.sweep(ended) })
	w.striking.Go(func() { w.produce(t) })
	for range w.plan.members {
		w.start()
	}
	for _, s := range w.steps {
		time.Sleep(time.Until(w.began.Add(s.at)))
		w.strike(s)
	}
	time.Sleep(time.Until(w.began.Add(storm)))
	w.striking.Wait()
	w.calm()
	w.awaitEnd()
	for _, m := range w.members() {
		w.goes.Go(m.close)
	}
	w.goes.Wait()
	close(ended)
	sweeper.Wait()
	w.atEnd(cluster.GroupInfo(group))
	if w.transactional {
		w.judgeOutput(w.readOutput())
	}
	time.Sleep(drained)
}

// members returns those that run.
func (w *world) members() []*member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.running)
}

// sweep removes members that send nothing, as Kafka does. kfake forgets to, where one is gone before
// its JoinGroup gets a response.
func (w *world) sweep(ended <-chan struct{}) {
	ticker := time.NewTicker(session / 4)
	defer ticker.Stop()
	since := map[string]time.Time{}
	for {
		select {
		case <-ticker.C:
		case <-ended:
			return
		}
		info := w.cluster.GroupInfo(group)
		if info == nil || info.State != "Stable" {
			clear(since)
			continue
		}
		for _, m := range info.Members {
			if since[m.MemberID].IsZero() {
				since[m.MemberID] = time.Now()
			}
			if quiet := time.Since(later(since[m.MemberID], w.heard(m.MemberID))); quiet > session+session/4 {
				w.note(nil, -1, -1, "%s has been silent for %v: out of the group", m.MemberID, quiet)
				w.expel(m.MemberID)
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (w *world) expel(member string) {
	b := w.connect()
	defer b.Close()
	if _, err := b.LeaveGroup(&sarama.LeaveGroupRequest{GroupId: group, MemberId: member}); err != nil {
		panic(err)
	}
}

// produce writes the records, and those of the topic that follows.
func (w *world) produce(t *testing.T) {
	if w.again == 0 {
		w.fill(t, time.Time{})
		return
	}
	w.fill(t, w.began.Add(w.again))
	time.Sleep(time.Until(w.began.Add(w.again)))
	w.note(nil, -1, -1, "STEP the topic is deleted, and created again")
	check(t, w.cluster.DeleteTopic(topic))
	w.newTopic()
	check(t, w.cluster.CreateTopic(topic, w.partitions, nil))
	w.fill(t, time.Time{})
}

// fill writes all records of a topic, or what it comes to until its end.
func (w *world) fill(t *testing.T, end time.Time) {
	b := w.connect()
	defer b.Close()
	r := dice(w.seed, 3)
	w.mu.Lock()
	topics := w.topics
	w.mu.Unlock()
	next := make([]int, w.partitions)
	for left := int(w.partitions) * w.records; left > 0 && (end.IsZero() || time.Now().Before(end)); {
		part := int32(r.IntN(int(w.partitions)))
		n := min(1+r.IntN(10), w.records-next[part])
		if n == 0 {
			continue
		}
		var records []*sarama.Record
		for i := range n {
			record := &sarama.Record{OffsetDelta: int64(i), Value: []byte(value(topics, int64(next[part]+i)))}
			if key := w.key(part, int64(next[part]+i)); key != "" {
				record.Key = []byte(key)
			}
			records = append(records, record)
		}
		if block := send(b, topic, part, records...); block.Err != sarama.ErrNoError || block.Offset != int64(next[part]) {
			t.Errorf("produce: %+v", block)
			return
		}
		next[part] += n
		left -= n
		if w.slack > 0 {
			time.Sleep(between(r, 0, 2*w.slack*time.Duration(n)/time.Duration(int(w.partitions)*w.records)+1))
		}
	}
}

// connect returns a connection with the broker of nobody's.
func (w *world) connect() *sarama.Broker {
	cfg := sarama.NewConfig()
	cfg.Net.Proxy.Enable, cfg.Net.Proxy.Dialer = true, w.network.link()
	b := sarama.NewBroker(broker)
	must(b.Open(cfg))
	return b
}

// send writes records as one batch.
func send(b *sarama.Broker, topic string, part int32, records ...*sarama.Record) *sarama.ProduceResponseBlock {
	request := &sarama.ProduceRequest{RequiredAcks: sarama.WaitForAll, Timeout: 1000, Version: 3}
	request.AddBatch(topic, part, &sarama.RecordBatch{
		Version: 2, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, LastOffsetDelta: int32(len(records) - 1),
		FirstTimestamp: time.Now(), MaxTimestamp: time.Now(), Records: records,
	})
	response, err := b.Produce(request)
	must(err)
	return response.GetBlock(topic, part)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

var refusals = []*kerr.Error{
	kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.RequestTimedOut, kerr.RequestTimedOut,
	kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.UnknownServerError,
}

// strike takes a step.
func (w *world) strike(s step) {
	running := w.members()
	if len(running) == 0 {
		w.start()
		return
	}
	m := running[s.member%len(running)]
	w.note(m, -1, -1, "STEP %v", s)
	if s.amid && s.do > leave && s.do != cutAndClose {
		w.striking.Go(func() {
			time.Sleep(s.length / 4)
			if !w.isClosing(m) {
				w.restart(m)
			}
		})
	}
	after := func(do func()) {
		w.striking.Go(func() {
			time.Sleep(s.length)
			do()
		})
	}
	switch s.do {
	case kill:
		w.striking.Go(m.kill)
		after(func() { w.start() })
	case restart:
		w.striking.Go(func() { w.restart(m) })
	case join:
		if len(running) < 5 {
			w.start()
		}
	case leave:
		if len(running) > 1 {
			w.striking.Go(m.close)
		}
	case blink:
		m.link.drop()
	case cut:
		m.link.setCut(true)
		after(func() { m.link.setCut(false) })
	case slowThere:
		m.link.slow(s.extent, quick)
		after(func() { m.link.slow(quick, quick) })
	case slowBack:
		m.link.slow(quick, s.extent)
		after(func() { m.link.slow(quick, quick) })
	case overtake:
		m.link.slow(s.extent+500*time.Millisecond, quick)
		after(func() {
			m.link.slow(quick, quick)
			m.link.drop()
		})
	case refuse:
		f := w.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: group, Err: refusals[s.code], Count: -1})
		if refusals[s.code] == kerr.UnknownMemberID {
			f.Remove()
			f = w.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: group, Err: refusals[s.code]})
		}
		after(f.Remove)
	case cutAndClose:
		m.link.setCut(true)
		w.striking.Go(m.close)
		after(func() { w.start() })
	case refuseStep:
		after(w.refuseStep(s))
	case loseStep:
		m.link.lose(loss{int16(transactionSteps[s.kind].key), []float64{0.5, 1}[s.code%2], s.after})
		after(func() { m.link.lose(loss{key: nothing}) })
	case holdEnd:
		after(w.holdEnd(s.extent))
		switch {
		case s.amid: // it is restarted
		case s.after:
			w.striking.Go(func() {
				time.Sleep(s.length / 2)
				if !w.isClosing(m) {
					m.kill()
					w.start()
				}
			})
		case len(running) < 5:
			w.start()
		}
	}
}

func (w *world) restart(m *member) {
	m.close()
	w.start()
}

// calm ends what the steps have done to members that still run.
func (w *world) calm() {
	running := w.members()
	for _, m := range running {
		m.link.slow(quick, quick)
		m.link.setCut(false)
		m.link.lose(loss{key: nothing})
	}
	w.holding.Store(0)
	if len(running) == 0 {
		w.start()
	}
}

// awaitEnd waits until all is stored.
func (w *world) awaitEnd() {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if info := w.cluster.GroupInfo(group); info != nil && w.stored(info) && w.allSettled() {
			return
		}
	}
	if *trace {
		stacks := make([]byte, 4<<20)
		w.note(nil, -1, -1, "it does not end:\n%s", stacks[:runtime.Stack(stacks, true)])
	}
}

func (w *world) stored(info *kfake.GroupInfo) bool {
	for part := range w.partitions {
		if c, ok := info.Commits[topic][part]; !ok || c.Offset < int64(w.records) {
			return false
		}
	}
	return true
}
