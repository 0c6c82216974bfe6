package letters

import (
	"context"
	"encoding/json"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// childEnv has this process run the command, with these arguments: for tests that kill it.
const childEnv = "ACKPOLICY_LETTERS_CHILD"

func TestMain(m *testing.M) {
	sessionTimeout = 4 * time.Second
	if text, ok := os.LookupEnv(childEnv); ok {
		var args []string
		if err := json.Unmarshal([]byte(text), &args); err != nil {
			panic(err)
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop)
		os.Exit(cli.NewEnv(os.Getenv, os.Stdin, os.Stdout, os.Stderr).Run(ctx, args, Command))
	}
	testkit.Main(m)
}
