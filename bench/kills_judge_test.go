package main

import (
	"slices"
	"testing"
	"time"
)

// A record is counted once per kill, for the one that hit the process which had finished it.
func TestKillJudge(t *testing.T) {
	j := newKillJudge()
	began := time.Now()
	for ms, e := range []soakEvent{
		{Kind: evStart, Member: 1, Offset: 0},
		{Kind: evEnd, Member: 1, Offset: 0},
		{Kind: evStart, Member: 1, Offset: 1},
		{Kind: evEnd, Member: 1, Offset: 1},
		{Kind: evStart, Member: 1, Offset: 2},
		{Kind: evStart, Member: 2, Offset: 3},
		{Kind: evEnd, Member: 2, Offset: 3},
		{Kind: evKilled, Member: 1},
		{Kind: evStart, Member: 2, Offset: 1}, // for the kill
		{Kind: evStart, Member: 2, Offset: 2}, // was in flight
		{Kind: evStart, Member: 1, Offset: 3}, // nobody killed member 2
		{Kind: evKilled, Member: 2},
		{Kind: evStart, Member: 1, Offset: 1}, // counted already
		{Kind: evEnd, Member: 1, Offset: 1},
		{Kind: evKilled, Member: 1},
		{Kind: evStart, Member: 2, Offset: 1}, // for the last kill
		{Kind: evCommitted, Member: 2},
	} {
		j.add(e, began.Add(time.Duration(ms)*time.Millisecond))
	}
	want := []killCount{
		{began.Add(7 * time.Millisecond), 1, 1, 4 * time.Millisecond},
		{began.Add(11 * time.Millisecond), 2, 0, 0},
		{began.Add(14 * time.Millisecond), 1, 1, time.Millisecond},
	}
	if !slices.Equal(j.kills, want) {
		t.Errorf("kills: got %v, want %v", j.kills, want)
	}
	if j.finished != 3 || j.otherwise != 1 || j.stored != 1 {
		t.Errorf("finished %d, otherwise %d, stored %d", j.finished, j.otherwise, j.stored)
	}
}
