package consumer

import (
	"testing"
	"time"
)

func TestStamp(t *testing.T) {
	for _, at := range []time.Time{{}, time.UnixMilli(0), time.UnixMilli(1_700_000_000_123)} {
		if got := stampOf(at).time(); !got.Equal(at) || got.IsZero() != at.IsZero() {
			t.Errorf("%v is %v", at, got)
		}
	}
}
