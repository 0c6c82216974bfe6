package consumer

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// sheet collects the lines at error and info level.
type sheet struct {
	watermill.NopLogger
	mu    sync.Mutex
	began time.Time
	lines []string
}

func (s *sheet) write(msg string, err error, fields watermill.LogFields) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := fmt.Sprintf("%v %s", time.Since(s.began).Round(time.Second), msg)
	for _, key := range []string{"kafka_partition", "kafka_partitions", "kafka_partition_offset", "failing_too", "failed", "failing_for"} {
		if value, ok := fields[key]; ok {
			line += fmt.Sprintf(" %s=%v", key, value)
		}
	}
	if err != nil && !errors.Is(err, errAway) {
		line += " err=" + err.Error()
	}
	s.lines = append(s.lines, line)
}

func (s *sheet) Error(msg string, err error, fields watermill.LogFields) { s.write(msg, err, fields) }
func (s *sheet) Info(msg string, fields watermill.LogFields)             { s.write(msg, nil, fields) }

// patient is a health with that many partitions, some of which may be paused.
type patient struct {
	*health
	sheet sheet
	mu    sync.Mutex
	ours  map[place]bool
}

func newPatient(t *testing.T, partitions int) *patient {
	p := &patient{ours: map[place]bool{}}
	p.sheet.began = time.Now()
	for i := range partitions {
		p.ours[place{"", int32(i)}] = false
	}
	p.health = newHealth(&p.sheet, false, func() bool { return false }, func() map[place]bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return maps.Clone(p.ours)
	})
	p.session(true)
	go p.run()
	return p
}

func (p *patient) want(t *testing.T, want ...string) {
	t.Helper()
	p.sheet.mu.Lock()
	defer p.sheet.mu.Unlock()
	if got := strings.Join(p.sheet.lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

var errAway = errors.New("connection refused")

// fail fails at all partitions, each second for d.
func (p *patient) fail(k symptom, d time.Duration) {
	for range int(d / time.Second) {
		for i := range p.ours {
			p.failed(k, i, failure{err: errAway})
		}
		time.Sleep(time.Second)
	}
}

func (p *patient) heal(k symptom) {
	for i := range p.ours {
		p.works(k, i)
	}
}

func TestOutageOfManyPartitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, 200)
		go p.fail(committing, time.Minute)
		p.fail(fetching, time.Minute)
		p.heal(fetching)
		p.heal(committing)
		time.Sleep(10 * time.Second)
		p.close()
		all := "200: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"
		fetch := "Cannot fetch from Kafka, retrying kafka_partitions=" + all
		p.want(t,
			"0s "+fetch+"",
			"5s Commits keep failing, retrying kafka_partitions="+all+" failing_too=fetching ("+all+") failing_for=5s",
			"10s "+fetch+" failing_too=committing ("+all+") failing_for=10s",
			"40s "+fetch+" failing_too=committing ("+all+") failing_for=40s",
			"1m5s Kafka works again failed=fetching ("+all+"), committing ("+all+") failing_for=1m0s",
		)
	})
}

// A coordinator that moves, and a partition that is given away or paused, end their symptoms without a line.
func TestWhatIsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, 3)
		p.fail(committing, 4*time.Second)
		p.heal(committing)
		time.Sleep(time.Minute)
		p.want(t)

		p.failed(fetching, place{"", 1}, failure{err: errAway})
		p.failed(fetching, place{"", 2}, failure{err: errAway})
		p.mu.Lock()
		delete(p.ours, place{"", 1})
		p.ours[place{"", 2}] = true
		p.mu.Unlock()
		time.Sleep(time.Minute)
		p.close()
		p.want(t,
			"1m4s Cannot fetch from Kafka, retrying kafka_partitions=2: 1, 2",
			"1m9s Kafka works again failed=fetching (2: 1, 2)",
		)
	})
}

// What fails and works in turn is one outage: it does not make lines each time.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, 1)
		for range 50 { // ten minutes
			p.fail(fetching, 2*time.Second)
			p.heal(fetching)
			time.Sleep(10 * time.Second)
		}
		time.Sleep(20 * time.Second)
		p.close()
		if n := len(p.sheet.lines); n > 10 || !strings.Contains(p.sheet.lines[n-1], "Kafka works again") {
			t.Errorf("%d lines:\n%s", n, strings.Join(p.sheet.lines, "\n"))
		}
	})
}

// An outage lasts until a session has begun, and what a session's end has cost is reported though
// the partitions are others' by then, or the subscription closes.
func TestOutageEndsInASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, 1)
		p.failed(connecting, everywhere, failure{text: "Kafka consumer stopped, reconnecting", err: errAway})
		p.session(false)
		p.failed(unconfirmed, place{"", 0}, failure{err: errAway})
		p.mu.Lock()
		clear(p.ours)
		p.mu.Unlock()
		time.Sleep(time.Minute)
		p.session(true)
		time.Sleep(10 * time.Second)
		p.failed(unconfirmed, place{"", 0}, failure{err: errAway})
		p.close()
		p.want(t,
			"0s Kafka consumer stopped, reconnecting failing_too=last commits not confirmed (1: 0)",
			"0s Partition released, but its last commit is not confirmed: the next owner may deliver records again kafka_partition=0 failing_too=connecting",
			"1m5s Kafka works again failed=connecting, last commits not confirmed (1: 0) failing_for=1m0s",
			"1m10s Partition released, but its last commit is not confirmed: the next owner may deliver records again kafka_partition=0",
		)
	})
}

// What happens at many partitions when a session ends has one line, and what happens at one names its offset.
func TestNotesShareALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, 16)
		waits := note{text: "It waits", left: partition.Left{Running: 1}, fields: watermill.LogFields{"kafka_partition_offset": 7}}
		for i := range int32(16) {
			p.note(place{"", i}, waits)
			p.note(place{"", i}, note{text: "Released", err: "left: ", left: partition.Left{Pending: 2}})
		}
		time.Sleep(time.Minute)
		p.note(place{"", 3}, waits)
		p.close()
		all := " kafka_partitions=16: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"
		p.want(t,
			"0s It waits: 16 neither acked nor nacked yet"+all,
			"0s Released"+all+" err=left: 32 pending: their handlers returned without settling them",
			"1m0s It waits: 1 neither acked nor nacked yet kafka_partition=3 kafka_partition_offset=7",
		)
	})
}

// Retries that sarama has no error for are found by asking the broker, and a partition is
// fetched again once sarama asks for its leader without a retry between.
func TestSilentRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pause = 2 * time.Second
		p := newPatient(t, 3)
		p.connected(func(places []place) map[place]error {
			errs := map[place]error{}
			for _, at := range places {
				if errs[at] = nil; at.partition == 1 {
					errs[at] = errAway
				}
			}
			return errs
		})
		for n := range 10 {
			p.retry(n+1, pause)
			time.Sleep(pause)
			p.asked(place{"", 1})
		}
		p.asked(place{"", 1}) // a fetch has succeeded
		time.Sleep(10 * time.Second)
		p.close()
		p.want(t,
			"2s Cannot fetch from Kafka, retrying kafka_partition=1",
			"14s Cannot fetch from Kafka, retrying kafka_partition=1 failing_for=12s",
			"25s Kafka works again failed=fetching (1: 1) failing_for=17.8s",
		)
	})
}
