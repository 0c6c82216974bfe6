package transactions_test

import (
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.RunChild[spec](childEnv) // the members that TestKills kills
	testkit.Main(m)
}
