package testkit

import (
	"fmt"
	"strings"
	"testing"
)

// Each story is a ledger of partition 0: a letter per entry, and its offset. (b: began, e: ended, f: failed, a: assigned,
// k: killed, r: a late ack refused.)
func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		story string
		end   int64
		want  Findings
		fault string
	}{
		"all is well":                  {story: "a0 b0 e0 b1 e1", end: 2},
		"owners are not reported":      {story: "b0 e0 b1 e1", end: 2},
		"lost":                         {story: "b0 e0", end: 2, want: Findings{Lost: 1}, fault: "0/1: lost"},
		"lost, begun":                  {story: "b0", end: 1, want: Findings{Lost: 1, Unfinished: 1}, fault: "lost without a kill"},
		"lost by a kill":               {story: "a0 b0 k0 a1 b1 e1", end: 2, want: Findings{Lost: 1, Unfinished: 1, MaxMissing: 1}},
		"lost by a revocation":         {story: "a0 b0 a1 b1 e1", end: 2, want: Findings{Lost: 1, Unfinished: 1}, fault: "lost without a kill"},
		"again after a kill":           {story: "a0 b0 e0 b1 e1 k0 a0 b0 e0 b1 e1", end: 2, want: Findings{Twice: 2, Replayed: 2, MaxReplay: 2}},
		"again":                        {story: "b0 e0 b0 e0", end: 1, want: Findings{Twice: 1}, fault: "begun by member 0 after"},
		"again after another":          {story: "b0 e0 b1 e1 b0 e0", end: 2, want: Findings{Twice: 1}, fault: "after member 0 had begun 1"},
		"overtaken":                    {story: "b1 e1 b0 e0", end: 2, fault: "after member 0 had begun 1"},
		"two at once":                  {story: "b0 b1 e0 e1", end: 2, fault: "while 0 runs"},
		"below what was stored":        {story: "a1 b0 e0 b1 e1", end: 2, fault: "though 1 was stored"},
		"failed, and never ended":      {story: "b0 f0", end: 1, want: Findings{Lost: 1, Unfinished: 1}, fault: "lost without a kill"},
		"a late ack that is of no use": {story: "b0 e0 r0", end: 1, fault: "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			kinds := map[byte]Kind{'a': Assigned, 'b': Began, 'e': Ended, 'f': Failed, 'k': Killed, 'r': Refused}
			var l Ledger
			for _, word := range strings.Fields(c.story) {
				e := Entry{Kind: kinds[word[0]]}
				_, err := fmt.Sscan(word[1:], &e.Offset)
				Check(t, err)
				l.Add(e)
			}
			got := l.Judge([]int64{c.end}, func(RecordID) string { return "" })
			faults := strings.Join(got.Faults, "\n")
			if (len(got.Faults) > 0) != (c.fault != "") || !strings.Contains(faults, c.fault) {
				t.Errorf("faults %q, want %q", faults, c.fault)
			}
			c.want.Records = int(c.end)
			if got.Faults = nil; fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// What another process writes is read as it was written; a line that its death cut is not.
func TestLedgerOfAnotherProcess(t *testing.T) {
	var b strings.Builder
	want := []Entry{
		{Kind: Began, Member: 1, RecordID: RecordID{2, 3}, Attempt: 4},
		{Kind: Stored, RecordID: RecordID{5, 6}, Detail: "a reason,\nwith \"quotes\""},
	}
	for _, e := range want {
		Check(t, e.write(&b))
	}
	b.WriteString("began 1 2")
	var l Ledger
	Check(t, l.read(strings.NewReader(b.String())))
	if got := l.Entries(Began, Stored); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
