package ackpolicyprom_test

import (
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyprom"
)

// What a settled record costs the goroutine of the hooks.
func BenchmarkSettled(b *testing.B) {
	settled := ackpolicyprom.New(ackpolicyprom.Options{}).Hooks().Settled
	e := ackpolicy.SettledEvent{Status: ackpolicy.Acked, Duration: time.Millisecond}
	e.Group, e.Topic, e.Handler = "group", "topic", "handler"
	b.ReportAllocs()
	for b.Loop() {
		settled(e)
	}
}
