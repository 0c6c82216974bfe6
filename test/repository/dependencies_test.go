package repository_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The library brings no test broker and no test library into an application.
func TestDependencies(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "github.com/ackpolicy/watermill-ackpolicy").Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("%v\n%s", err, exit.Stderr)
	}
	testkit.Check(t, err)
	for _, path := range strings.Fields(string(out)) {
		for _, unwanted := range []string{"kfake", "franz-go", "testify", "goleak", "rapid", "brokertest"} {
			if strings.Contains(path, unwanted) {
				t.Errorf("imports %s", path)
			}
		}
		if path == "testing" {
			t.Error("imports testing")
		}
	}
}
