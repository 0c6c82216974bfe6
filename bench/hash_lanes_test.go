package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
)

func TestLanesKeepTheOrderOfEachKey(t *testing.T) {
	const records, keys = 3000, 40
	random := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	running := map[string]bool{}
	got, want := map[string][]int64{}, map[string][]int64{}
	l := newLanes(8, func(r *sarama.ConsumerMessage) {
		key := string(r.Key)
		mu.Lock()
		if running[key] {
			t.Errorf("two records of %s at once", key)
		}
		running[key] = true
		got[key] = append(got[key], r.Offset)
		mu.Unlock()
		if r.Offset%100 == 0 {
			time.Sleep(time.Millisecond)
		}
		mu.Lock()
		running[key] = false
		mu.Unlock()
	})
	for i := range int64(records) {
		key := fmt.Sprintf("key-%d", random.IntN(keys))
		want[key] = append(want[key], i)
		l.put(t.Context(), &sarama.ConsumerMessage{Key: []byte(key), Offset: i})
	}
	l.close()
	for key := range want {
		if !slices.Equal(got[key], want[key]) {
			t.Errorf("%s: handled %v", key, got[key])
		}
	}
}

func TestLanesAreAllUsed(t *testing.T) {
	used := map[int]int{}
	for i := range 10_000 {
		used[laneOf(fmt.Appendf(nil, "key-%d", i), 16)]++
	}
	for lane := range 16 {
		if n := used[lane]; n < 500 || n > 750 {
			t.Errorf("lane %d has %d of 10,000 keys", lane, n)
		}
	}
}
