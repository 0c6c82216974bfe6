package letters_test

import (
	"os"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) {
	if spec, ok := os.LookupEnv(letterChildEnv); ok {
		os.Exit(letterChild(spec)) // the one that TestKillBetweenLetterAndCommit kills
	}
	testkit.Main(m)
}
