package chaos

import (
	"maps"
	"slices"
	"testing"
	"time"
)

func TestSchedule(t *testing.T) {
	spec := NewSpec(7, Eager)
	calm := spec
	calm.Calm = true
	for _, length := range []time.Duration{10 * time.Second, 10 * time.Minute} {
		all := Schedule(spec, length)
		if !slices.Equal(all, Schedule(spec, length)) {
			t.Error("the same seed makes another schedule")
		}
		if slices.Equal(all, Schedule(NewSpec(8, Eager), length)) {
			t.Error("another seed makes the same schedule")
		}
		seen := map[Fault]bool{}
		until := map[int]time.Duration{}
		for _, a := range all {
			seen[a.Fault] = true
			if a.At < until[a.Slot] || a.At+a.For > length {
				t.Errorf("%v begins too early or ends too late", a)
			}
			until[a.Slot] = a.At + a.For
		}
		for _, fault := range []Fault{Restart, Kill, PauseLong} {
			if !seen[fault] {
				t.Errorf("%v: no %s in %v", length, fault, slices.Sorted(maps.Keys(seen)))
			}
		}
		for _, a := range Schedule(calm, length) {
			if !a.graceful() {
				t.Errorf("%v is not graceful", a)
			}
		}
	}
}
