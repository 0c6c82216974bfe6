package main

import (
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		rates []float64
		want  float64
	}{{[]float64{7}, 7}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 100}, 3}} {
		var rs []result
		for _, r := range c.rates {
			rs = append(rs, result{Rate: r})
		}
		if got := median(rs, func(r result) float64 { return r.Rate }); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.rates, got, c.want)
		}
	}
}

func TestTableComparesWithBaselineAndLimit(t *testing.T) {
	c := bcase{name: "x", baseline: "stock loop", limit: "memory loop"}
	who := []string{"memory loop", "stock loop", "ackpolicy loop", "ppc key", "spring batch"}
	got := newTable(c, who, map[string][]result{
		"memory loop":    {{Rate: 2000}},
		"stock loop":     {{Rate: 100}, {Rate: 200}, {Rate: 300}},
		"ackpolicy loop": {{Rate: 1000.2, Allocs: 3}, {Rate: 1000.9, Allocs: 1}, {Rate: 1000.5, Allocs: 2}},
		"spring batch":   nil,
	}).lines()
	want := [][]string{
		got[0],
		{"memory loop", "2,000", "2,000–2,000", "10.00", "100.0", "–", "–", "–", "none: the limit of a Subscribe loop"},
		{"stock loop", "200", "100–300", "1.00", "10.0", "–", "–", "–", "at least once, order per partition"},
		{"ackpolicy loop", "1,001", "1,000–1,001", "5.00", "50.0", "2.0", "–", "–", "at least once, order per partition"},
		{"ppc key", "not there", "", "", "", "", "", "", "at least once, order per key"},
		{"spring batch", "failed", "", "", "", "", "", "", "at least once, order per partition"},
	}
	for i := range want {
		if strings.Join(got[i], "|") != strings.Join(want[i], "|") {
			t.Errorf("got  %q\nwant %q", got[i], want[i])
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 123456: "123,456", 12345678: "12,345,678"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) is %s, want %s", n, got, want)
		}
	}
}

func TestChartHasTheFastestFirstAndNoBarForWhatIsNotThere(t *testing.T) {
	c := bcase{name: "x", about: "a < b", baseline: "stock loop", limit: "memory loop"}
	svg := chartOf([]table{newTable(c, []string{"stock loop", "memory loop", "ackpolicy loop", "ppc key"}, map[string][]result{
		"memory loop": {{Rate: 9}}, "stock loop": {{Rate: 1}}, "ackpolicy loop": {{Rate: 4}},
	})})
	ours, stock := strings.Index(svg, ">ackpolicy loop<"), strings.Index(svg, ">stock loop<")
	if ours < 0 || stock < ours {
		t.Errorf("ackpolicy at %d, stock at %d", ours, stock)
	}
	if strings.Contains(svg, "ppc key") || strings.Contains(svg, ">memory loop<") {
		t.Error("a bar for a consumer without one")
	}
	if !strings.Contains(svg, "a &lt; b") {
		t.Error("the title is not escaped")
	}
}

func TestMeterEndsWithTheLastRecordOrTheLimit(t *testing.T) {
	for _, c := range []struct {
		job  job
		want int64
	}{
		{job{Records: 3}, 3},
		{job{Records: 2, Limit: time.Hour}, 2}, // the third one is over
		{job{Records: 1000, Limit: time.Millisecond}, 3},
	} {
		m := &meter{job: c.job, begin: func() {}, done: make(chan struct{})}
		for range 3 {
			m.handle(nil)
		}
		<-m.done
		if got := m.handled(); got != c.want {
			t.Errorf("%+v: %d handled, want %d", c.job, got, c.want)
		}
	}
}
