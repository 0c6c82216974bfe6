package batches_test

import (
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.RunChild[killSpec](killChildEnv)   // the process that TestKill kills
	testkit.RunChild[crashSpec](crashChildEnv) // the one that ends itself in TestCrashLoop
	testkit.Main(m)
}
