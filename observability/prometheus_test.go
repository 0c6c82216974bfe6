package observability_test

import (
	"context"
	"fmt"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/util/teststorage"

	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyprom"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

const jobName = "ackpolicy"

// prometheusServer is Prometheus in this process: it scrapes services over HTTP, stores what it gets, and evaluates
// the rules of alerts.yml.
type prometheusServer struct {
	rules *rules.Manager
	query rules.QueryFunc

	mu      sync.Mutex
	targets map[string]struct{} // addresses
	changed chan map[string][]*targetgroup.Group
	fired   map[string]map[string]time.Duration // by group and alert: from the condition to the first notification
	evals   int
}

// startPrometheus runs a Prometheus until the test's end. What the rules say about time is divided by speed.
func startPrometheus(t *testing.T, interval time.Duration, speed int) *prometheusServer {
	t.Helper()
	p := &prometheusServer{
		targets: map[string]struct{}{}, fired: map[string]map[string]time.Duration{}, changed: make(chan map[string][]*targetgroup.Group, 1),
	}
	storage := teststorage.New(t)
	engine := promqltest.NewTestEngineWithOpts(t, promql.EngineOpts{
		MaxSamples: 10_000_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute / time.Duration(speed), Parser: promQL,
	})
	p.query = rules.EngineQueryFunc(engine, storage)

	scraper, err := scrape.NewManager(&scrape.Options{DiscoveryReloadInterval: model.Duration(100 * time.Millisecond)}, nil, nil, nil, storage, prometheus.NewRegistry())
	testkit.Check(t, err)
	cfg, err := config.Load(fmt.Sprintf("global: {scrape_interval: %[1]v, scrape_timeout: %[1]v}\nscrape_configs: [{job_name: %[2]s}]\n", model.Duration(interval), jobName), promslog.NewNopLogger())
	testkit.Check(t, err)
	testkit.Check(t, scraper.ApplyConfig(cfg))
	ctx, cancel := context.WithCancel(context.Background())
	p.rules = rules.NewManager(&rules.ManagerOptions{
		QueryFunc: p.query, NotifyFunc: p.notified, AppendableV2: storage, Queryable: storage, Context: ctx,
		GroupLoader: hurriedLoader{speed}, Parser: promQL,
	})
	testkit.Check(t, p.rules.Update(interval, []string{"alerts.yml"}, labels.EmptyLabels(), "", p.evaluated))
	var running sync.WaitGroup
	running.Go(func() { _ = scraper.Run(p.changed) })
	running.Go(p.rules.Run)
	t.Cleanup(func() {
		p.rules.Stop()
		scraper.Stop()
		cancel()
		running.Wait()
	})
	return p
}

// scrapes adds the service with these metrics to what is scraped, until stop is called.
func (p *prometheusServer) scrapes(t testing.TB, metrics *ackpolicyprom.Metrics) (stop func()) {
	t.Helper()
	registry := prometheus.NewRegistry()
	testkit.Check(t, registry.Register(metrics))
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	address := strings.TrimPrefix(server.URL, "http://")
	p.change(func() { p.targets[address] = struct{}{} })
	return sync.OnceFunc(func() {
		p.change(func() { delete(p.targets, address) })
		server.Close()
	})
}

// change changes the targets and has the scraper take the newest list.
func (p *prometheusServer) change(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
	group := &targetgroup.Group{Source: jobName}
	for address := range p.targets {
		group.Targets = append(group.Targets, model.LabelSet{model.AddressLabel: model.LabelValue(address)})
	}
	select {
	case <-p.changed: // an older list that nobody has taken
	default:
	}
	p.changed <- map[string][]*targetgroup.Group{jobName: {group}}
}

func (p *prometheusServer) evaluated(ctx context.Context, g *rules.Group, at time.Time) {
	rules.DefaultEvalIterationFunc(ctx, g, at)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.evals++
}

// evaluations returns how often the rules were evaluated.
func (p *prometheusServer) evaluations() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.evals
}

// notified is called with alerts as an Alertmanager is: once they fire, and when they are resolved.
func (p *prometheusServer) notified(_ context.Context, _ string, alerts ...*rules.Alert) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range alerts {
		group, name := a.Labels.Get("consumer_group"), a.Labels.Get("alertname")
		if p.fired[group] == nil {
			p.fired[group] = map[string]time.Duration{}
		}
		if _, known := p.fired[group][name]; !known {
			p.fired[group][name] = a.FiredAt.Sub(a.ActiveAt)
		}
	}
}

// everFired returns the alerts about a group that have fired so far.
func (p *prometheusServer) everFired(group string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.fired[group]))
}

// firing returns the alerts about a group that fire now.
func (p *prometheusServer) firing(group string) []string {
	return p.active(group, rules.StateFiring)
}

func (p *prometheusServer) active(group string, state rules.AlertState) []string {
	names := map[string]struct{}{}
	for _, r := range p.rules.AlertingRules() {
		for _, a := range r.ActiveAlerts() {
			if a.State == state && a.Labels.Get("consumer_group") == group {
				names[r.Name()] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// hurriedLoader loads rules as Prometheus does, and divides their times.
type hurriedLoader struct{ speed int }

func (l hurriedLoader) Load(file string, ignoreUnknown bool, scheme model.ValidationScheme) (*rulefmt.RuleGroups, []error) {
	groups, errs := rulefmt.ParseFile(file, ignoreUnknown, scheme, promQL, promslog.NewNopLogger())
	if len(errs) > 0 {
		return nil, errs
	}
	for i := range groups.Groups {
		for j := range groups.Groups[i].Rules {
			rule := &groups.Groups[i].Rules[j]
			rule.For /= model.Duration(l.speed)
		}
	}
	return groups, nil
}

// Parse divides the times of a query: its ranges and offsets, and the seconds that a metric is compared with.
func (l hurriedLoader) Parse(query string) (parser.Expr, error) {
	expr, err := promQL.ParseExpr(query)
	if err != nil {
		return nil, err
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.MatrixSelector:
			n.Range /= time.Duration(l.speed)
		case *parser.SubqueryExpr:
			n.Range /= time.Duration(l.speed)
			n.Step /= time.Duration(l.speed)
		case *parser.VectorSelector:
			n.OriginalOffset /= time.Duration(l.speed)
		case *parser.BinaryExpr:
			metric, ok := n.LHS.(*parser.VectorSelector)
			if limit, number := n.RHS.(*parser.NumberLiteral); ok && number && strings.Contains(metric.Name, "_seconds") {
				limit.Val /= float64(l.speed)
			}
		}
		return nil
	})
	return expr, nil
}
