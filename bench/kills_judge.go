package main

import "time"

// killJudge counts which records a kill has come again. It gets the events of all members in
// the order in which they were written.
type killJudge struct {
	records  []killRecord // by number
	inFlight map[byte]map[int64]struct{}
	of       map[byte][]int // by member: its kills, by index
	began    map[byte]time.Time
	kills    []killCount

	finished   int // records
	otherwise  int // finished records that came again though nobody killed who had finished them
	stored     int // offsets
	start, end time.Time
}

type killRecord struct {
	finished  bool
	cameAgain bool // since it was last finished
	member    byte // who finished it last
	process   int  // how often that had been killed before
	at        time.Time
}

// killCount is what one kill did.
type killCount struct {
	at       time.Time
	inFlight int
	again    int           // records whose handlers had finished
	oldest   time.Duration // how long before the kill the first of them had
}

func newKillJudge() *killJudge {
	return &killJudge{inFlight: map[byte]map[int64]struct{}{}, of: map[byte][]int{}, began: map[byte]time.Time{}}
}

func (j *killJudge) add(e soakEvent, now time.Time) {
	switch e.Kind {
	case evStart:
		if j.start.IsZero() {
			j.start = now
		}
		j.began[e.Member] = now
		if j.inFlight[e.Member] == nil {
			j.inFlight[e.Member] = map[int64]struct{}{}
		}
		j.inFlight[e.Member][e.Offset] = struct{}{}
		if r := j.record(e.Offset); r.finished && !r.cameAgain {
			r.cameAgain = true
			j.again(r)
		}
	case evEnd:
		delete(j.inFlight[e.Member], e.Offset)
		r := j.record(e.Offset)
		if !r.finished {
			j.finished++
		}
		*r = killRecord{finished: true, member: e.Member, process: len(j.of[e.Member]), at: now}
		j.end = now
	case evCommitted:
		j.stored++
	case evKilled:
		j.of[e.Member] = append(j.of[e.Member], len(j.kills))
		j.kills = append(j.kills, killCount{at: now, inFlight: len(j.inFlight[e.Member])})
		delete(j.inFlight, e.Member)
		delete(j.began, e.Member)
	}
}

func (j *killJudge) record(number int64) *killRecord {
	for int64(len(j.records)) <= number {
		j.records = append(j.records, killRecord{})
	}
	return &j.records[number]
}

// again counts a record for the kill of the process that had finished it.
func (j *killJudge) again(r *killRecord) {
	kills := j.of[r.member]
	if r.process == len(kills) {
		j.otherwise++
		return
	}
	kill := &j.kills[kills[r.process]]
	kill.again++
	kill.oldest = max(kill.oldest, kill.at.Sub(r.at))
}

// works reports whether a member's process began a record not long ago.
func (j *killJudge) works(member byte, now time.Time) bool {
	began, ok := j.began[member]
	return ok && now.Sub(began) < 50*time.Millisecond
}
