package ackpolicyweb

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

const (
	// brief is how long what passes by itself, such as a rebalance or one failed delivery, is no trouble.
	brief = 5 * time.Second
	// long is how long a record may be pending.
	long = time.Minute
	// mostTroubles is how many are shown in full.
	mostTroubles = 20
)

// noProgress is the kind of trouble that is left out where another one of its record says why.
const noProgress = "No progress"

// trouble is something that somebody on call should know.
type trouble struct {
	ID     string
	Tone   string // "bad", "warn" or "note"
	Kind   string // a word or two
	Record string // as name says; or the partition, or the topic
	Link   string // to it; "" if it is no partition
	Text   string // what is wrong
	Since  moment
	Facts  []string
	Error  string
	Do     string
	Act    *actions

	sub       *subscription
	partition int32 // -1: not one
	began     time.Time
	word      string // in the partition's row
}

// actions are the buttons beside something.
type actions struct {
	ID         string // prefix
	Subscriber int
	Topic      string
	Partition  int32
	Offset     int64
	Record     string // as name says
	Retry      bool
	Reject     bool
	DeadLetter bool // has a destination
	Pause      bool // or Resume
	Resume     bool
	Back       string // where a browser without script goes: "partition" or ""
	// InFlight and Deliveries are the limits as they are; "": it has no form to change them.
	InFlight, Deliveries string
	PerSecond            string
}

// PauseText is on the button that pauses.
func (a *actions) PauseText() string { return "Pause" + a.all() }

// ResumeText is on the button that resumes.
func (a *actions) ResumeText() string { return "Resume" + a.all() }

func (a *actions) all() string {
	if a.Partition < 0 {
		return " all"
	}
	return ""
}

// button is one of actions.
type button struct {
	*actions
	Do, Text string
	One      bool // it is of one partition
}

func newButton(a *actions, do, text string) button {
	return button{a, do, text, a.Partition >= 0}
}

// troubles lists what is wrong, the worst first.
func (h *Handler) troubles(s *snapshot) []trouble {
	all := s.ended()
	for i := range s.subscriptions {
		sub := &s.subscriptions[i]
		t := finder{h: h, s: s, sub: sub}
		t.subscription()
		for j := range sub.Partitions {
			t.partition(&sub.Partitions[j], sub.windows[j].records)
		}
		t.grouped()
		all = append(all, t.found...)
	}
	return worstFirst(all)
}

// worstFirst sorts troubles, and leaves out that a partition makes no progress where it is known why.
func worstFirst(all []trouble) []trouble {
	known := map[string]bool{}
	for i := range all {
		if all[i].Kind != noProgress {
			known[all[i].Record] = true
		}
	}
	all = slices.DeleteFunc(all, func(t trouble) bool { return t.Kind == noProgress && known[t.Record] })
	tones := []string{"bad", "warn", "note"}
	slices.SortStableFunc(all, func(a, b trouble) int {
		return cmp.Or(slices.Index(tones, a.Tone)-slices.Index(tones, b.Tone), a.began.Compare(b.began))
	})
	return all
}

// ended lists what is wrong with a Subscriber that no subscription of it shows, and partitions
// that make no progress.
func (s *snapshot) ended() (all []trouble) {
	for i, health := range s.health {
		for j, p := range health.Problems {
			t := trouble{Tone: "bad", Record: clean(p.Topic, 300), began: p.Since, Since: momentOf(p.Since, s.at), Error: clean(p.Err, mostError), partition: -1}
			switch {
			case p.Code == ackpolicy.ProblemEnded:
				t.ID, t.Kind, t.Text = fmt.Sprintf("t-ended-%d-%d", i, j), "Ended", clean(p.Text, 500)+"."
				t.Do = "Nothing reads this topic here until the process is started again."
			case p.Code == ackpolicy.ProblemNoProgress:
				sub, of := s.find(&query{subscriber: i, topic: p.Topic, partition: p.Partition})
				if of == nil {
					continue
				}
				t.ID, t.Kind, t.Text, t.word = fmt.Sprintf("t-still-%d-%d", sub.number, p.Partition), noProgress, clean(p.Text, 500)+".", "no progress"
				t.Record, t.Link = name(p.Topic, p.Partition, p.Offset), link(i, p.Topic, p.Partition, p.Offset)
				t.sub, t.partition = sub, p.Partition
				t.Do = "Look at what the record waits for: a slot that handlers of other partitions have (MaxInFlightTotal), or its next delivery."
			default:
				continue
			}
			all = append(all, t)
		}
	}
	return all
}

// finder finds the troubles of a subscription.
type finder struct {
	h     *Handler
	s     *snapshot
	sub   *subscription
	found []trouble

	// What is reported for all partitions together.
	commits, unmarked, memory []int32
	commitErr                 error
	left                      int
	memorySince               time.Time
}

func (f *finder) add(t trouble) {
	t.sub = f.sub
	t.ID = fmt.Sprintf("t-%d-%s", f.sub.number, t.ID)
	if !t.began.IsZero() {
		t.Since = momentOf(t.began, f.s.at)
	}
	if t.Record == "" {
		t.Record = clean(f.sub.Topic, 300)
	}
	f.found = append(f.found, t)
}

// doFor says what to do about a symptom of Kafka.
var doFor = map[string]string{
	"connecting":    "Check that the brokers are up and can be reached from here, and the credentials. It is tried again by itself.",
	"fetching":      "Look at the leaders of these partitions: kafka-topics.sh --describe. The other partitions continue.",
	"opening":       "Look at the leaders of these partitions: kafka-topics.sh --describe. The other partitions continue.",
	"committing":    "Check the group's coordinator. Handlers continue until MaxUncommitted is reached; a crash before a commit succeeds delivers records again.",
	"reading again": "Records that wait for their next delivery were pushed out of memory, and have to be fetched again. Look at the leaders of these partitions.",
}

// subscription looks at what concerns all partitions.
func (f *finder) subscription() {
	sub := f.sub
	for _, fail := range sub.Failing {
		t := trouble{
			ID: "kafka-" + strings.ReplaceAll(clean(fail.Symptom, 50), " ", "-"), Tone: "bad", Kind: "Kafka", Text: clean(fail.Text, 500) + ".",
			began: fail.Since, Error: textOf(fail.Err), Do: doFor[fail.Symptom], partition: -1,
		}
		if f.s.at.Sub(fail.Since) < brief {
			t.Tone = "warn"
		}
		if len(fail.Partitions) > 0 {
			t.Facts = append(t.Facts, "partitions "+list(fail.Partitions))
		}
		f.add(t)
	}
	if !sub.Consuming && f.s.at.Sub(sub.Since) > brief && !sub.of.Closing {
		f.add(trouble{
			ID: "left", Tone: "bad", Kind: "No assignment", Text: "No partition is assigned here: the group rebalances, or Kafka is away.",
			began: sub.Since, partition: -1,
			Do: "A member that was killed, or is slow to give up its partitions, delays all others until its session or the rebalance times out. kafka-consumer-groups.sh --describe --members shows them.",
		})
	}
	if sub.of.Closing {
		f.add(trouble{ID: "closing", Tone: "note", Kind: "Closing", Text: "The subscriber is closing: running handlers finish, and what is settled is committed.", partition: -1})
	}
}

// grouped adds what concerns many partitions at the same time.
func (f *finder) grouped() {
	committing := slices.ContainsFunc(f.sub.Failing, func(x ackpolicy.Failure) bool { return x.Symptom == "committing" || x.Symptom == "connecting" })
	if len(f.commits) > 0 && !committing {
		f.add(trouble{
			ID: "commits", Tone: "warn", Kind: "Commit", Text: "The last commit is not confirmed.", Facts: []string{"partitions " + list(f.commits)},
			Error: textOf(f.commitErr), Do: doFor["committing"], partition: -1, word: "commit fails",
		})
	}
	if len(f.memory) > 0 {
		f.add(trouble{
			ID: "memory", Tone: "warn", Kind: "Memory", began: f.memorySince, partition: -1,
			Text:  fmt.Sprintf("MaxBufferedBytes is reached (%s of %s): fetching pauses until records are settled.", size(f.sub.BufferedBytes), size(f.sub.MaxBufferedBytes)),
			Facts: []string{"partitions " + list(f.memory)}, Do: "See what holds these partitions. If nothing does, raise MaxBufferedBytes.",
		})
	}
	if len(f.unmarked) > 0 {
		f.add(trouble{
			ID: "unmarked", Tone: "note", Kind: "Commit room", partition: -1,
			Text:  fmt.Sprintf("%s would come again after a restart: the commit has no room to say that they are settled.", plural(f.left, "settled record", "settled records")),
			Facts: []string{"partitions " + list(f.unmarked)}, Do: "Settle the oldest records of these partitions. docs/ledger.md says how much room there is.",
		})
	}
}

// list writes partitions, as ranges.
func list(partitions []int32) string {
	partitions = slices.Sorted(slices.Values(partitions))
	var parts []string
	for i := 0; i < len(partitions); {
		j := i
		for j+1 < len(partitions) && partitions[j+1] == partitions[j]+1 {
			j++
		}
		part := strconv.Itoa(int(partitions[i]))
		if j > i {
			part += "–" + strconv.Itoa(int(partitions[j]))
		}
		parts = append(parts, part)
		i = j + 1
	}
	if len(parts) > 12 {
		return strings.Join(parts[:12], ", ") + fmt.Sprintf(" … (%d in all)", len(partitions))
	}
	return strings.Join(parts, ", ")
}

// in writes when something is to come.
func in(d time.Duration) string {
	if d <= 0 {
		return "now"
	}
	return "in " + took(d+time.Second-1)
}
