package letters_test

import (
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.RunChild[letterSpec](letterChildEnv) // the process that TestKillBetweenLetterAndCommit kills
	testkit.Main(m)
}
