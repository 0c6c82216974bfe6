package observability_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"

	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyprom"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// exported returns the labels of each metric that ackpolicyprom exports.
func exported(t *testing.T) map[string][]string {
	ch := make(chan *prometheus.Desc)
	go func() {
		defer close(ch)
		ackpolicyprom.New(ackpolicyprom.Options{PerPartition: true}).Describe(ch)
	}()
	all := map[string][]string{}
	for d := range ch {
		m := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`).FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("not understood: %s", d)
		}
		all[m[1]] = strings.Split(m[2], ",")
		if strings.HasSuffix(m[1], "_duration_seconds") {
			all[m[1]+"_bucket"] = append([]string{"le"}, all[m[1]]...)
		}
	}
	return all
}

var promQL = parser.NewParser(parser.Options{})

// checkQuery reports metrics and labels of a query that nobody exports.
func checkQuery(t *testing.T, where, query string, all map[string][]string) {
	expr, err := promQL.ParseExpr(query)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	known := []string{"__name__"}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			of, exists := all[v.Name]
			if !exists {
				t.Errorf("%s: no such metric: %s", where, v.Name)
			}
			known = append(known, of...)
			for _, m := range v.LabelMatchers {
				if m.Name != "__name__" && !slices.Contains(of, m.Name) {
					t.Errorf("%s: %s has no label %s", where, v.Name, m.Name)
				}
			}
		}
		return nil
	})
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if a, ok := n.(*parser.AggregateExpr); ok {
			for _, label := range a.Grouping {
				if !slices.Contains(known, label) {
					t.Errorf("%s: no label %s", where, label)
				}
			}
		}
		return nil
	})
}

// Each query of the dashboard is one that Prometheus understands, over metrics and labels that there are.
func TestDashboardQueries(t *testing.T) {
	content, err := os.ReadFile("dashboard.json")
	testkit.Check(t, err)
	var dashboard struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr, LegendFormat string }
		}
	}
	testkit.Check(t, json.Unmarshal(content, &dashboard))
	all, queries := exported(t), 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			queries++
			checkQuery(t, p.Title, strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"), all)
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s has no query", p.Title)
		}
	}
	if queries < 30 {
		t.Errorf("only %d queries found", queries)
	}
}

// alerts returns the rules of alerts.yml.
func alerts(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile("alerts.yml", false, model.UTF8Validation, promQL, promslog.NewNopLogger())
	testkit.Check(t, errors.Join(errs...))
	return groups.Groups[0].Rules
}

// fired returns the alerts that fire within an hour of these series, in the notation of
// Prometheus' tests with one value per minute.
func fired(t *testing.T, series string) []string {
	t.Helper()
	storage := promqltest.LoadedStorage(t, "load 1m\n"+series)
	engine := promqltest.NewTestEngine(t, false, 5*time.Minute, 1_000_000)
	query := rules.EngineQueryFunc(engine, storage)
	names := map[string]bool{}
	for _, r := range alerts(t) {
		expr, err := promQL.ParseExpr(r.Expr)
		testkit.Check(t, err)
		rule := rules.NewAlertingRule(r.Alert, expr, time.Duration(r.For), time.Duration(r.KeepFiringFor), labels.FromMap(r.Labels), labels.FromMap(r.Annotations),
			labels.EmptyLabels(), "", true, promslog.NewNopLogger())
		for minute := range 120 {
			_, err := rule.Eval(t.Context(), 0, time.Unix(0, 0).Add(time.Duration(minute)*time.Minute), query, nil, 0)
			testkit.Check(t, err)
			for _, a := range rule.ActiveAlerts() {
				names[r.Alert] = names[r.Alert] || a.State == rules.StateFiring
				if summary := a.Annotations.Get("summary"); summary == "" || strings.Contains(summary, "<no value>") || strings.Contains(summary, "error expanding") {
					t.Errorf("%s: summary %q", r.Alert, summary)
				}
			}
		}
	}
	maps.DeleteFunc(names, func(_ string, fires bool) bool { return !fires })
	return slices.Sorted(maps.Keys(names))
}

// faults are series of each fault, by the alert that it fires.
var faults = map[string]string{
	"AckpolicyNotLive":  `ackpolicy_live{consumer_group="g"} 1x10 0x110`,
	"AckpolicyNotReady": `ackpolicy_ready{consumer_group="g"} 1x10 0x110`,
	"AckpolicyNotConsuming": `ackpolicy_subscriptions{consumer_group="g",topic="t",handler_name="h"} 1x120
  ackpolicy_subscriptions_consuming{consumer_group="g",topic="t",handler_name="h"} 1x10 0x110`,
	"AckpolicyKafkaFailing":     `ackpolicy_kafka_failing_seconds{consumer_group="g",topic="t",symptom="fetching"} 0+60x120`,
	"AckpolicyHandlerSlow":      `ackpolicy_slow_handlers{consumer_group="g",topic="t",handler_name="h"} 0x10 1x110`,
	"AckpolicyPartitionStalled": `ackpolicy_stalled_seconds_max{consumer_group="g",topic="t",handler_name="h"} 0+60x120`,
	"AckpolicyBlocked":          `ackpolicy_blocked_partitions{consumer_group="g",topic="t",handler_name="h"} 0x10 1x110`,
	"AckpolicyPoison":           `ackpolicy_oldest_record_attempts_max{consumer_group="g",topic="t",handler_name="h"} 0+1x120`,
	"AckpolicyPendingForgotten": `ackpolicy_oldest_record_seconds_max{consumer_group="g",topic="t",handler_name="h",status="pending"} 0+60x120`,
	"AckpolicyRecordsRejected":  `ackpolicy_rejected_records_total{consumer_group="g",topic="t"} 0x10 1x110`,
	"AckpolicyLettersNotStored": `ackpolicy_unstored_letters{consumer_group="g",topic="t",handler_name="h"} 0x10 1x110`,
	"AckpolicyLettersGivenUp":   `ackpolicy_dead_letters_total{consumer_group="g",topic="t",result="given_up"} 0x10 1x110`,
	"AckpolicyRecordsLost":      `ackpolicy_position_reset_skipped_records_total{consumer_group="g",topic="t"} 0x10 7x110`,
	"AckpolicyUnconfirmed":      `ackpolicy_unconfirmed_total{consumer_group="g",topic="t"} 0x10 1x110`,
	"AckpolicyUndecodable":      `ackpolicy_undecodable_total{consumer_group="g",topic="t"} 0x10 1x110`,
	"AckpolicyCommitsFailing":   `ackpolicy_failing_commit_partitions{consumer_group="g",topic="t",handler_name="h"} 0x10 1x110`,
	"AckpolicyFetchStalled":     `ackpolicy_fetch_stalls_total{consumer_group="g",topic="t"} 0x10 1x110`,
	"AckpolicyLagGrows":         `ackpolicy_work_lag_records{consumer_group="g",topic="t",handler_name="h"} 0+100x120`,
	"AckpolicyPaused":           `ackpolicy_paused_partitions{consumer_group="g",topic="t",handler_name="h"} 0x10 1x110`,
}

// Each alert fires for its fault, and no other does.
func TestEachAlertFiresForItsFault(t *testing.T) {
	all := exported(t)
	for _, r := range alerts(t) {
		checkQuery(t, r.Alert, r.Expr, all)
		if _, ok := faults[r.Alert]; !ok {
			t.Errorf("%s: no fault is tried", r.Alert)
		}
	}
	for alert, series := range faults {
		t.Run(alert, func(t *testing.T) {
			if got := fired(t, "  "+series); !slices.Equal(got, []string{alert}) {
				t.Errorf("fired: %v", got)
			}
		})
	}
}

// The queries of docs/kubernetes.md are over metrics and labels that there are.
func TestQueriesOfThePage(t *testing.T) {
	page, err := os.ReadFile("../docs/kubernetes.md")
	testkit.Check(t, err)
	queries := regexp.MustCompile(`(?m)^ +query: (.*)$`).FindAllStringSubmatch(string(page), -1)
	if len(queries) != 1 {
		t.Errorf("%d queries found", len(queries))
	}
	for _, q := range queries {
		checkQuery(t, "docs/kubernetes.md", q[1], exported(t))
	}
}
