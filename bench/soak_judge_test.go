package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// ledger is what members reported. All of it is of one partition and, unless it says otherwise, of one key.
type ledger []soakEvent

func of(kind, member int, offset, a int64) ledger {
	return ledger{{Kind: byte(kind), Member: byte(member), Offset: offset, A: a}}
}

func assigned(member int, from int64) ledger  { return of(evAssigned, member, from, 0) }
func released(member int, at int64) ledger    { return of(evReleased, member, at, 0) }
func committed(member int, next int64) ledger { return of(evCommitted, member, next, 0) }

// releasedWith left letters that were not stored, and had no room for marks.
func releasedWith(member int, at, letters, unmarked int64) ledger {
	return ledger{{Kind: evReleased, Member: byte(member), Offset: at, A: letters * releasedLetter, B: unmarked}}
}

func killed(member int) ledger                     { return of(evKilled, member, 0, 0) }
func deadLettered(member int, offset int64) ledger { return of(evDeadLettered, member, offset, 0) }

func start(member int, offset, attempt int64) ledger { return of(evStart, member, offset, attempt) }
func end(member int, offset, verdict int64) ledger   { return of(evEnd, member, offset, verdict) }

func settled(member int, offset, status, attempt int64) ledger {
	return ledger{{Kind: evSettled, Member: byte(member), Offset: offset, A: status, B: attempt}}
}

func began(member int, offset, attempt, verdict int64) ledger {
	return join(start(member, offset, attempt), end(member, offset, verdict))
}

// acked, nacked and rejected are whole deliveries.
func acked(member int, offset, attempt int64) ledger {
	return join(began(member, offset, attempt, statusAcked), settled(member, offset, statusAcked, attempt))
}

func nacked(member int, offset, attempt int64) ledger {
	return join(began(member, offset, attempt, statusNacked), settled(member, offset, statusNacked, attempt))
}

func rejected(member int, offset, attempt int64) ledger {
	return join(began(member, offset, attempt, statusRejected), settled(member, offset, statusRejected, attempt), deadLettered(member, offset))
}

// late is a delivery that is settled after its handler returned; its settlement is reported separately.
func late(member int, offset, attempt, status int64) ledger {
	return began(member, offset, attempt, status|settledLate)
}

func (l ledger) key(key int64) ledger {
	for i := range l {
		if l[i].Kind == evStart || l[i].Kind == evEnd {
			l[i].B = key
		}
	}
	return l
}

func join(parts ...ledger) ledger { return slices.Concat(parts...) }

type soakCase struct {
	name      string
	reports   ledger
	end       int64 // of the partition
	letters   []int64
	unordered bool
	want      []string // the violations' beginnings after "member N: " or the like; none: it is legal
	lost      int64
}

func TestSoakJudgeAllows(t *testing.T) {
	for _, c := range []soakCase{
		{name: "attempts continue at the next owner", end: 1, reports: join(
			assigned(0, 0), nacked(0, 0, 1), released(0, 0), assigned(1, 0), acked(1, 0, 2))},
		{name: "one after the other", end: 2, reports: join(assigned(0, 0), acked(0, 0, 1), acked(0, 1, 1))},
		{name: "a nacked record comes again before those behind it", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 0, 2), acked(0, 1, 1))},
		{name: "another key goes ahead of a nacked record", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), acked(0, 0, 2))},
		{name: "keys run at once", end: 2, reports: join(
			assigned(0, 0), start(0, 0, 1), acked(0, 1, 1).key(7), end(0, 0, statusAcked), settled(0, 0, statusAcked, 1))},
		{name: "unordered, a key's records run at once", unordered: true, end: 2, reports: join(
			assigned(0, 0), start(0, 1, 1), start(0, 0, 1), end(0, 0, statusNacked), settled(0, 0, statusNacked, 1),
			end(0, 1, statusAcked), settled(0, 1, statusAcked, 1), acked(0, 0, 2))},
		{name: "a verb settles before the handler ends", end: 1, reports: join(
			assigned(0, 0), start(0, 0, 1), settled(0, 0, statusAcked, 1), end(0, 0, statusAcked))},
		{name: "a record is settled late, behind later ones", end: 2, reports: join(
			assigned(0, 0), late(0, 0, 1, statusAcked), acked(0, 1, 1), settled(0, 0, statusAcked, 1))},
		{name: "a record is nacked late: later ones went ahead", end: 2, reports: join(
			assigned(0, 0), late(0, 0, 1, statusNacked), acked(0, 1, 1), settled(0, 0, statusNacked, 1), acked(0, 0, 2))},
		{name: "a nacked record comes again after one before it that was nacked late", end: 2, reports: join(
			assigned(0, 0), late(0, 0, 1, statusNacked), nacked(0, 1, 1), settled(0, 0, statusNacked, 1),
			nacked(0, 0, 2), acked(0, 0, 3), acked(0, 1, 2))},
		{name: "a record comes again before the hook reports its nack", end: 1, reports: join(
			assigned(0, 0), late(0, 0, 1, statusNacked), start(0, 0, 2), settled(0, 0, statusNacked, 1), end(0, 0, statusAcked), settled(0, 0, statusAcked, 2))},
		{name: "a record is done before the hook reports its nack", end: 1, reports: join(
			assigned(0, 0), late(0, 0, 1, statusNacked), acked(0, 0, 2), settled(0, 0, statusNacked, 1))},
		{name: "a rejected record has its letter", end: 1, letters: []int64{0}, reports: join(assigned(0, 0), rejected(0, 0, 1))},
		{name: "the next owner begins where the last one ended", end: 2, reports: join(
			assigned(0, 0), acked(0, 0, 1), released(0, 1), assigned(1, 1), acked(1, 1, 1))},
		{name: "what is settled behind a record that is left has its mark", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), released(0, 0), assigned(1, 0), acked(1, 0, 2))},
		{name: "what is settled behind a record that was never begun has its mark", end: 2, reports: join(
			assigned(0, 0), acked(0, 1, 1).key(7), released(0, 0), assigned(1, 0), acked(1, 0, 1))},
		{name: "a mark is kept by an owner that is killed", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), released(0, 0), assigned(1, 0), killed(1), assigned(2, 0), acked(2, 0, 2))},
		{name: "a mark had no room", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), releasedWith(0, 0, 0, 1), assigned(1, 0), acked(1, 0, 2), acked(1, 1, 1).key(7))},
		{name: "a mark had no room, and its hook reports it late", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), late(0, 1, 1, statusAcked).key(7), releasedWith(0, 0, 0, 1), assigned(1, 0), start(1, 1, 1).key(7),
			settled(0, 1, statusAcked, 1), end(1, 1, statusAcked).key(7), settled(1, 1, statusAcked, 1), acked(1, 0, 2))},
		{name: "a letter is stored as the assignment ends, and once more by the next owner", end: 1, letters: []int64{0, 0}, reports: join(
			assigned(0, 0), rejected(0, 0, 1), releasedWith(0, 0, 1, 0), assigned(1, 0), rejected(1, 0, 1))},
		{name: "a letter is stored as the assignment ends, behind a record that is left", end: 2, letters: []int64{1, 1}, reports: join(
			assigned(0, 0), nacked(0, 0, 1), rejected(0, 1, 1).key(7), releasedWith(0, 0, 1, 0), assigned(1, 0), acked(1, 0, 2), rejected(1, 1, 1).key(7))},
		{name: "a letter is not stored before the assignment ends", end: 1, letters: []int64{0}, reports: join(
			assigned(0, 0), began(0, 0, 1, statusRejected), settled(0, 0, statusRejected, 1), released(0, 0), assigned(1, 0), rejected(1, 0, 1))},
		{name: "a hook reports after the release", end: 2, reports: join(
			assigned(0, 0), late(0, 0, 1, statusAcked), released(0, 1), settled(0, 0, statusAcked, 1), assigned(1, 1), acked(1, 1, 1))},
		{name: "a hook reports after the next owner has begun", end: 2, reports: join(
			assigned(0, 0), late(0, 0, 1, statusAcked), released(0, 1), assigned(1, 1), settled(0, 0, statusAcked, 1), acked(1, 1, 1))},
		{name: "a hook reports what has a mark, after the next owner has begun", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), late(0, 1, 1, statusAcked).key(7), released(0, 0), assigned(1, 0), settled(0, 1, statusAcked, 1),
			acked(1, 0, 2))},
		{name: "what was not settled as the drain ended is left", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), late(0, 1, 1, statusAcked).key(7), released(0, 0), assigned(1, 0), acked(1, 0, 2), acked(1, 1, 2).key(7))},
		{name: "what a killed member has not committed comes again", end: 2, reports: join(
			assigned(0, 0), acked(0, 0, 1), committed(0, 1), acked(0, 1, 1), killed(0), assigned(1, 1), acked(1, 1, 1))},
		{name: "what a killed member has committed by a mark, or not", end: 4, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), acked(0, 2, 1).key(8), killed(0),
			assigned(1, 0), acked(1, 0, 2), acked(1, 2, 1).key(8), acked(1, 3, 1).key(9))},
		{name: "what a killed member committed by a mark and had no time to report", end: 3, reports: join(
			assigned(0, 0), nacked(0, 0, 1), began(0, 1, 1, statusAcked).key(7), killed(0), assigned(1, 0), acked(1, 0, 2), acked(1, 2, 1).key(8),
			committed(1, 3))},
		{name: "what a killed member committed and had no time to report", end: 2, reports: join(
			assigned(0, 0), began(0, 0, 1, statusAcked), killed(0), assigned(1, 1), acked(1, 1, 1))},
		{name: "a member is killed in mid-handler", end: 1, reports: join(assigned(0, 0), start(0, 0, 1), killed(0), assigned(1, 0), acked(1, 0, 1))},
	} {
		t.Run(c.name, c.run)
	}
}

func TestSoakJudgeRefuses(t *testing.T) {
	for _, c := range []soakCase{
		{name: "a record is never delivered", end: 2, lost: 1, reports: join(assigned(0, 0), acked(0, 0, 1)),
			want: []string{"1 records lost, the first of them at 1"}},
		{name: "a hole is never delivered", end: 3, lost: 1, reports: join(assigned(0, 0), acked(0, 0, 1), acked(0, 2, 1)),
			want: []string{"1 records lost, the first of them at 1"}},
		{name: "a nacked record does not come again", end: 1, lost: 1, reports: join(assigned(0, 0), nacked(0, 0, 1)),
			want: []string{"1 records lost, the first of them at 0"}},
		{name: "the next owner begins behind a record that was never delivered", end: 2, lost: 1, reports: join(
			assigned(0, 0), acked(0, 0, 1), released(0, 1), assigned(1, 2)),
			want: []string{"partition 0 assigned to member 1 from offset 2 on: 1 was never delivered", "1 records lost, the first of them at 1"}},
		{name: "the next owner begins behind a nacked record", end: 2, lost: 1, reports: join(
			assigned(0, 0), nacked(0, 0, 1), released(0, 1), assigned(1, 1), acked(1, 1, 1)),
			want: []string{"1 records lost, the first of them at 0"}},
		{name: "a killed member committed past a nacked record", end: 2, lost: 1, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), committed(0, 2), killed(0), assigned(1, 2)),
			want: []string{"a commit passed offset 0, which was nacked", "1 records lost, the first of them at 0"}},
		{name: "a killed member committed past a record that was never delivered", end: 2, lost: 1, reports: join(
			assigned(0, 0), acked(0, 1, 1), killed(0), assigned(1, 2)),
			want: []string{"1 records lost, the first of them at 0"}},
		{name: "a settled record is delivered again", end: 1, reports: join(assigned(0, 0), acked(0, 0, 1), start(0, 0, 2)),
			want: []string{"0/0 delivered again after it was settled"}},
		{name: "a record is delivered again that was not nacked", end: 1, reports: join(
			assigned(0, 0), late(0, 0, 1, statusAcked), acked(0, 0, 2)), unordered: true,
			want: []string{"0/0 delivered again, and was not nacked"}},
		{name: "a record is delivered while its handler runs", end: 1, reports: join(
			assigned(0, 0), start(0, 0, 1), acked(0, 0, 2)), unordered: true,
			want: []string{"0/0 delivered while its handler runs"}},
		{name: "attempts are counted wrongly", end: 1, reports: join(assigned(0, 0), nacked(0, 0, 1), acked(0, 0, 3)),
			want: []string{"0/0 is attempt 3, wanted 2"}},
		{name: "an attempt is skipped", end: 1, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 0, 3)),
			want: []string{"0/0 is attempt 3, wanted 2"}},
		{name: "a later record of the key starts while one runs", end: 2, reports: join(
			assigned(0, 0), start(0, 0, 1), acked(0, 1, 1), end(0, 0, statusAcked), settled(0, 0, statusAcked, 1)),
			want: []string{"0/1 delivered while offset 0 of its key runs"}},
		{name: "a later record of the key starts while the handler of one that is settled runs", end: 2, reports: join(
			assigned(0, 0), start(0, 0, 1), settled(0, 0, statusAcked, 1), acked(0, 1, 1), end(0, 0, statusAcked)),
			want: []string{"0/1 delivered while offset 0 of its key runs"}},
		{name: "a record before it starts while the handler of one that is settled runs", end: 2, reports: join(
			assigned(0, 0), late(0, 0, 1, statusNacked), start(0, 1, 1), settled(0, 1, statusAcked, 1), acked(0, 0, 2), end(0, 1, statusAcked)),
			want: []string{"0/0 delivered while offset 1 of its key runs"}},
		{name: "a record before it starts while one runs", end: 2, reports: join(
			assigned(0, 0), late(0, 0, 1, statusNacked), start(0, 1, 1), acked(0, 0, 2), end(0, 1, statusAcked), settled(0, 1, statusAcked, 1)),
			want: []string{"0/0 delivered while offset 1 of its key runs"}},
		{name: "a record overtakes a nacked one of its key", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1), acked(0, 0, 2)),
			want: []string{"0/1 delivered before offset 0 of its key, which was nacked"}},
		{name: "a record overtakes one before it that was nacked late and then nacked again", end: 2, reports: join(
			assigned(0, 0), late(0, 0, 1, statusNacked), nacked(0, 1, 1), settled(0, 0, statusNacked, 1), nacked(0, 0, 2),
			acked(0, 1, 2), acked(0, 0, 3)),
			want: []string{"0/1 delivered before offset 0 of its key, which was nacked"}},
		{name: "a record comes after a later one of its key", end: 2, reports: join(
			assigned(0, 0), acked(0, 1, 1), acked(0, 0, 1)),
			want: []string{"0/0 delivered after offset 1 of its key"}},
		{name: "two owners", end: 1, reports: join(assigned(0, 0), assigned(1, 0), acked(1, 0, 1)),
			want: []string{"partition 0 assigned to member 1, while it is member 0's"}},
		{name: "a record is delivered after the release", end: 1, reports: join(
			assigned(0, 0), released(0, 0), start(0, 0, 1), assigned(1, 0), acked(1, 0, 1)),
			want: []string{"0/0 delivered, its partition is nobody's"}},
		{name: "a record is delivered by a member that is not the owner", end: 1, reports: join(
			assigned(0, 0), start(1, 0, 1), end(1, 0, statusAcked), settled(0, 0, statusAcked, 1)),
			want: []string{"0/0 delivered, its partition is member 0's"}},
		{name: "a record is settled by a member that never was the owner", end: 1, reports: join(
			assigned(0, 0), start(0, 0, 1), settled(1, 0, statusAcked, 1), settled(0, 0, statusAcked, 1)),
			want: []string{"0/0 settled, its partition is member 0's"}},
		{name: "a record is settled twice", end: 1, reports: join(assigned(0, 0), acked(0, 0, 1), settled(0, 0, statusAcked, 1)),
			want: []string{"0/0 settled a second time"}},
		{name: "a record that is settled is nacked", end: 2, reports: join(
			assigned(0, 0), start(0, 0, 1), acked(0, 1, 1).key(7), settled(0, 1, statusNacked, 1), end(0, 0, statusAcked), settled(0, 0, statusAcked, 1)),
			want: []string{"0/1 settled a second time"}},
		{name: "an earlier attempt is acked", end: 1, reports: join(
			assigned(0, 0), late(0, 0, 1, statusNacked), start(0, 0, 2), settled(0, 0, statusAcked, 1), end(0, 0, statusAcked), settled(0, 0, statusAcked, 2)),
			want: []string{"0/0 settled a second time"}},
		{name: "a nack becomes an ack", end: 1, reports: join(
			assigned(0, 0), began(0, 0, 1, statusNacked), settled(0, 0, statusAcked, 1)),
			want: []string{"0/0 was acked, wanted nacked"}},
		{name: "an ack by a verb becomes a nack", end: 1, reports: join(
			assigned(0, 0), start(0, 0, 1), settled(0, 0, statusNacked, 1), end(0, 0, statusAcked), settled(0, 0, statusAcked, 1)),
			want: []string{"0/0 was nacked, wanted acked"}},
		{name: "a release while a handler runs", end: 1, reports: join(
			assigned(0, 0), start(0, 0, 1), released(0, 0), assigned(1, 0), acked(1, 0, 1)),
			want: []string{"released partition 0 while the handler of offset 0 runs"}},
		{name: "handlers outlive the drain", end: 1, reports: join(
			assigned(0, 0), start(0, 0, 1), of(evReleased, 0, 0, releasedLate), assigned(1, 0), acked(1, 0, 1)),
			want: []string{"handlers outlived the drain"}},
		{name: "the last commit fails", end: 1, reports: join(
			assigned(0, 0), acked(0, 0, 1), of(evReleased, 0, 1, releasedFailed), assigned(1, 0), acked(1, 0, 1)),
			want: []string{"the last commit was not confirmed"}},
		{name: "a duplicate outside a kill: the release is below what is settled", end: 2, reports: join(
			assigned(0, 0), acked(0, 0, 1), acked(0, 1, 1), released(0, 1)),
			want: []string{"released partition 0 at offset 1, though everything below 2 is settled"}},
		{name: "a duplicate outside a kill: behind a record that is left", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), released(0, 0), assigned(1, 0), acked(1, 0, 2), start(1, 1, 2).key(7)),
			want: []string{"0/1 delivered again after it was settled"}},
		{name: "a duplicate outside a kill: it was settled by the owner before", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), released(0, 0), assigned(1, 0), killed(1), assigned(2, 0), acked(2, 0, 2),
			start(2, 1, 2).key(7)),
			want: []string{"0/1 delivered again after it was settled"}},
		{name: "a duplicate outside a kill: the hook reports late", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), late(0, 1, 1, statusAcked).key(7), released(0, 0), assigned(1, 0), start(1, 1, 2).key(7),
			settled(0, 1, statusAcked, 1), end(1, 1, statusAcked).key(7), settled(1, 1, statusAcked, 2), acked(1, 0, 2)),
			want: []string{"0/1 delivered again after member 0 had settled it"}},
		{name: "a duplicate outside a kill: more than marks had no room", end: 3, reports: join(
			assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), acked(0, 2, 1).key(8), releasedWith(0, 0, 0, 1), assigned(1, 0),
			acked(1, 0, 2), acked(1, 1, 1).key(7), start(1, 2, 1).key(8)),
			want: []string{"0/2 delivered again after it was settled"}},
		{name: "a duplicate outside a kill: a rejected record whose letter was stored", end: 2, letters: []int64{1}, reports: join(
			assigned(0, 0), nacked(0, 0, 1), rejected(0, 1, 1).key(7), released(0, 0), assigned(1, 0), acked(1, 0, 2), start(1, 1, 1).key(7)),
			want: []string{"0/1 delivered again after it was settled"}},
		{name: "a release below a rejected record whose letter was stored", end: 1, letters: []int64{0}, reports: join(
			assigned(0, 0), rejected(0, 0, 1), released(0, 0)),
			want: []string{"released partition 0 at offset 0, though everything below 1 is settled"}},
		{name: "a duplicate after a kill: AckSync had reported that it is stored", end: 2, reports: join(
			assigned(0, 0), nacked(0, 0, 1), start(0, 1, 1).key(7), settled(0, 1, statusAcked, 1), end(0, 1, statusAcked|settledStored).key(7),
			killed(0), assigned(1, 0), acked(1, 0, 2), start(1, 1, 1).key(7)),
			want: []string{"0/1 delivered again after it was settled"}},
		{name: "a duplicate outside a kill: the next owner begins below the release", end: 2, reports: join(
			assigned(0, 0), acked(0, 0, 1), acked(0, 1, 1), released(0, 2), assigned(1, 1), acked(1, 1, 1)),
			want: []string{"assigned to member 1 from offset 1 on, though 2 was committed"}},
		{name: "a duplicate after a kill: the next owner begins below what was committed", end: 2, reports: join(
			assigned(0, 0), acked(0, 0, 1), acked(0, 1, 1), committed(0, 2), killed(0), assigned(1, 1), acked(1, 1, 1)),
			want: []string{"assigned to member 1 from offset 1 on, though 2 was committed"}},
		{name: "a release by a member that is not the owner", end: 1, reports: join(assigned(0, 0), acked(0, 0, 1), released(1, 1)),
			want: []string{"released partition 0, which is member 0's"}},
		{name: "a rejected record has no letter", end: 1, reports: join(assigned(0, 0), rejected(0, 0, 1)),
			want: []string{"0/0: rejected, and no dead letter"}},
		{name: "a rejected record has two letters", end: 1, letters: []int64{0, 0}, reports: join(assigned(0, 0), rejected(0, 0, 1)),
			want: []string{"0/0: 1 dead letters, rejected 0 times"}},
		{name: "a record that was acked has a letter", end: 1, letters: []int64{0}, reports: join(assigned(0, 0), acked(0, 0, 1)),
			want: []string{"0/0: 1 dead letters, rejected 0 times"}},
		{name: "a rejected record is done before its letter is stored", end: 1, lost: 1, letters: []int64{0}, reports: join(
			assigned(0, 0), began(0, 0, 1, statusRejected), settled(0, 0, statusRejected, 1), released(0, 1), assigned(1, 1)),
			want: []string{"1 records lost, the first of them at 0"}},
		{name: "a member saw a fault", end: 0, reports: of(evFault, 0, 0, 1), want: []string{"AckSync failed"}},
	} {
		t.Run(c.name, c.run)
	}
}

func (c soakCase) run(t *testing.T) {
	j := newJudge(1, !c.unordered)
	for _, e := range c.reports {
		j.add(e, time.Time{})
	}
	for _, offset := range c.letters {
		j.letter(soakRecord{0, offset})
	}
	if settled := j.handled([]int64{c.end}); settled != (c.lost == 0) {
		t.Errorf("all is settled: %v", settled)
	}
	if lost := j.finish([]int64{c.end}); lost != c.lost {
		t.Errorf("%d lost, want %d", lost, c.lost)
	}
	if len(j.examples) != len(c.want) {
		t.Fatalf("violations:\n%s\nwant:\n%s", strings.Join(j.examples, "\n"), strings.Join(c.want, "\n"))
	}
	for i, want := range c.want {
		if !strings.Contains(j.examples[i], want) {
			t.Errorf("violation: %s\nwant: … %s", j.examples[i], want)
		}
	}
	j.add(committed(0, c.end)[0], time.Time{})
	if c.lost == 0 && j.remembered() > 0 {
		t.Errorf("the judge holds %d records, and all are settled", j.remembered())
	}
}

func TestSoakJudgeNamesWhatStandsStill(t *testing.T) {
	const limit = time.Minute
	j := newJudge(1, true)
	began := time.Now()
	for _, e := range join(assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7)) {
		j.add(e, began)
	}
	if j.stuck(began.Add(limit), limit); j.violations != 0 {
		t.Errorf("too early: %v", j.examples)
	}
	j.stuck(began.Add(limit+1), limit)
	j.stuck(began.Add(limit+2), limit) // it is reported once
	if j.violations != 1 || !strings.Contains(j.examples[0], "0/0 is not settled since 1m0s") {
		t.Errorf("got %v", j.examples)
	}
}

func TestSoakJudgeCountsWhatComesAgain(t *testing.T) {
	j := newJudge(1, true)
	for _, e := range join(
		assigned(0, 0), nacked(0, 0, 1), acked(0, 1, 1).key(7), acked(0, 2, 1).key(8), releasedWith(0, 0, 0, 1),
		assigned(1, 0), acked(1, 0, 2), acked(1, 1, 1).key(7), acked(1, 3, 1).key(9), committed(1, 3), killed(1),
		assigned(0, 3), acked(0, 3, 1).key(9),
	) {
		j.add(e, time.Now())
	}
	if j.violations != 0 || j.repeatedUnmarked != 1 || j.kept != 2 || j.repeatedKill != 1 || j.kills[1] != 1 || j.assignments != 3 || j.deliveries != 7 {
		t.Errorf("without marks %d, with marks %d, killed %d, kills %v, %d assignments, %d deliveries; %v",
			j.repeatedUnmarked, j.kept, j.repeatedKill, j.kills, j.assignments, j.deliveries, j.examples)
	}
}

func TestSoakJudgeWantsTheEndsStored(t *testing.T) {
	j := newJudge(1, true)
	for _, e := range join(assigned(0, 0), acked(0, 0, 1), acked(0, 1, 1), committed(0, 1)) {
		j.add(e, time.Now())
	}
	if j.stored([]int64{2}) {
		t.Error("stored, though 1 is committed")
	}
	if j.add(released(0, 2)[0], time.Now()); !j.stored([]int64{2}) {
		t.Error("not stored, though it was released at 2")
	}
}

func TestSoakEventsSurviveThePipe(t *testing.T) {
	e := soakEvent{Kind: evEnd, Member: 3, Partition: 11, Offset: 1 << 40, A: statusNacked | settledLate, B: -1}
	b := e.encode()
	if len(b) != soakEventSize || decodeSoakEvent(b) != e {
		t.Errorf("%+v became %+v", e, decodeSoakEvent(b))
	}
}
