// Package applications_test runs the components of Watermill on this library, and moves applications of every kind to it.
package applications_test

import (
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
