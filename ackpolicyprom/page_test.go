package ackpolicyprom_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyprom"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// described returns the names and help texts of all metrics.
func described() map[string]string {
	ch := make(chan *prometheus.Desc)
	go func() {
		defer close(ch)
		ackpolicyprom.New(ackpolicyprom.Options{PerPartition: true}).Describe(ch)
	}()
	all := map[string]string{}
	for d := range ch {
		m := regexp.MustCompile(`fqName: "([^"]+)", help: "([^"]+)"`).FindStringSubmatch(d.String())
		all[m[1]] = m[2]
	}
	return all
}

// docs/metrics.md names each metric with its help text, and none that there is not.
func TestPageListsEveryMetric(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	testkit.Check(t, err)
	all := described()
	listed := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(ackpolicy_[a-z_]+)` \\|[^|]*\\| ([^|]*) \\|$").FindAllStringSubmatch(string(page), -1) {
		listed[row[1]] = true
		switch help, ok := all[row[1]]; {
		case !ok:
			t.Errorf("there is no metric %s", row[1])
		case help != row[2]:
			t.Errorf("%s: the page says %q, the metric %q", row[1], row[2], help)
		}
	}
	for name, help := range all {
		if !listed[name] {
			t.Errorf("not on the page: | `%s` | | %s |", name, help)
		}
	}
}
