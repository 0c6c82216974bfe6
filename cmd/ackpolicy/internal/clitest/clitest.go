// Package clitest runs commands in tests.
package clitest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
)

// Result is what a run of a command left.
type Result struct {
	Args     []string
	Code     int
	Out, Err string
}

// Run runs a command. KAFKA_BROKERS holds the brokers, which may be none.
func Run(ctx context.Context, brokers []string, in io.Reader, args []string, commands ...func(*cli.Env) *cobra.Command) Result {
	var out, errs bytes.Buffer
	env := cli.NewEnv(func(string) string { return strings.Join(brokers, ",") }, in, &out, &errs)
	code := env.Run(ctx, args, commands...)
	return Result{args, code, out.String(), errs.String()}
}

func (r Result) String() string {
	return fmt.Sprintf("%q: exit status %d\n--- stdout\n%s--- stderr\n%s", r.Args, r.Code, r.Out, r.Err)
}

// Want asserts the exit code, and that the texts are in what was printed.
func (r Result) Want(t testing.TB, code int, texts ...string) {
	t.Helper()
	if r.Code != code {
		t.Fatalf("want exit status %d, got %v", code, r)
	}
	for _, text := range texts {
		if !strings.Contains(r.Out+r.Err, text) {
			t.Errorf("%q is missing in %v", text, r)
		}
	}
}
