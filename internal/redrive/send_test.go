package redrive

import (
	"errors"
	"slices"
	"testing"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Chosen letters go back; those that were not chosen stay open, whatever their place.
func TestSendLeavesWhatIsNotChosen(t *testing.T) {
	b := newBed(t, 2)
	for i, reason := range []string{"timeout", "invalid", "timeout", "invalid", "timeout"} {
		b.letter(1, "k", string(rune('a'+i)), ackpolicy.Letter{Offset: int64(i), Reason: errors.New(reason)})
	}
	b.letter(0, "k", "z", ackpolicy.Letter{})
	b.want(exitDone, []string{"Sent 4 letters."}, "send", "-reason", "^timeout$|charge")
	if got := b.values(1); !slices.Equal(got, []string{"a", "c", "e"}) {
		t.Errorf("the origin holds %v", got)
	}
	if got := b.values(0); !slices.Equal(got, []string{"z"}) {
		t.Errorf("the origin holds %v", got)
	}
	b.wantStored(1, 1)
	b.wantStored(0, 1)
	b.want(exitDone, []string{"2 letters,", "1:1 ", "1:3 "}, "list")
	b.want(exitDone, []string{"No letter in " + b.dlq + " is open that the filters choose"}, "send", "-reason", "timeout")
	b.want(exitDone, []string{"Sent 1 letter."}, "send", "-limit", "1")
	b.wantStored(1, 3)
	b.want(exitDone, []string{"Sent 1 letter."}, "send")
	b.wantStored(1, 5)
	if got := b.values(1); !slices.Equal(got, []string{"a", "c", "e", "b", "d"}) {
		t.Errorf("the origin holds %v", got)
	}
	b.want(exitDone, []string{"No letter in " + b.dlq + " is open."}, "send")
}
