package repository_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The library brings no test broker and no test library into an application, nor does ackpolicytest into its tests.
func TestDependencies(t *testing.T) {
	t.Parallel()
	const library = "github.com/ackpolicy/watermill-ackpolicy"
	for _, pkg := range []string{library, library + "/ackpolicytest"} {
		dependencies(t, pkg, pkg != library)
	}
}

func dependencies(t *testing.T, pkg string, tests bool) {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", pkg).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("%v\n%s", err, exit.Stderr)
	}
	testkit.Check(t, err)
	for _, path := range strings.Fields(string(out)) {
		for _, unwanted := range []string{"kfake", "franz-go", "testify", "goleak", "rapid", "brokertest"} {
			if strings.Contains(path, unwanted) {
				t.Errorf("%s imports %s", pkg, path)
			}
		}
		if path == "testing" && !tests {
			t.Errorf("%s imports testing", pkg)
		}
	}
}
