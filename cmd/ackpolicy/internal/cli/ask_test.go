package cli

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestAsk(t *testing.T) {
	t.Parallel()
	for reply, want := range map[string]bool{"y\n": true, " Yes \n": true, "n\n": false, "\n": false, "": false, "yellow\n": false} {
		if yes, err := ask(t.Context(), strings.NewReader(reply), io.Discard, "?"); yes != want || err != nil {
			t.Errorf("%q: %v, %v", reply, yes, err)
		}
	}
	in, typing := io.Pipe()
	defer typing.Close() // ends the reader that nobody waits for
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if yes, err := ask(ctx, in, io.Discard, "?"); yes || !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, %v", yes, err)
	}
}
