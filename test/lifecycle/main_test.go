package lifecycle_test

import (
	"os"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) {
	if spec, ok := os.LookupEnv(killChildEnv); ok {
		os.Exit(child[killSpec](spec)) // the process that TestKill kills
	}
	if spec, ok := os.LookupEnv(crashChildEnv); ok {
		os.Exit(child[crashSpec](spec)) // the one that ends itself in TestCrashLoop
	}
	testkit.Main(m)
}
