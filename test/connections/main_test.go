package connections_test

import (
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
