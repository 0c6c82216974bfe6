package outage

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// reports fails once per second for d and returns the seconds at which a line is due.
func reports(o *Outage, d time.Duration) (at []int) {
	for range int(d / time.Second) {
		if report, due := o.Failed(); due {
			at = append(at, int(report.For/time.Second))
		}
		time.Sleep(time.Second)
	}
	return at
}

func TestReportsGrowRarer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o Outage
		if got, want := reports(&o, time.Hour), []int{0, 10, 40, 130, 400, 1000, 1600, 2200, 2800, 3400}; !slices.Equal(got, want) {
			t.Errorf("reported at %v s, want %v", got, want)
		}
		report, reported := o.Over()
		if !reported || report.Failures != 3600 || report.For != time.Hour {
			t.Errorf("over: %+v, reported %v", report, reported)
		}
		if _, reported := o.Over(); reported {
			t.Error("over twice")
		}
		if got := reports(&o, 11*time.Second); !slices.Equal(got, []int{0, 10}) {
			t.Errorf("the next outage is reported at %v s", got)
		}
	})
}

func TestShortOutageIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Outage{Quiet: 5 * time.Second}
		if got := reports(&o, 5*time.Second); got != nil {
			t.Errorf("reported at %v s", got)
		}
		if _, reported := o.Over(); reported {
			t.Error("the beginning was not reported")
		}
		if got, want := reports(&o, time.Minute), []int{5, 15, 45}; !slices.Equal(got, want) {
			t.Errorf("reported at %v s, want %v", got, want)
		}
	})
}

func TestLastsBeginsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o Outage
		if _, due := o.Lasts(); due || !o.Since().IsZero() {
			t.Error("it began an outage")
		}
		began := time.Now()
		o.Failed()
		time.Sleep(10 * time.Second)
		if report, due := o.Lasts(); !due || report.Failures != 2 || !o.Since().Equal(began) {
			t.Errorf("it lasts: %+v, due %v, since %v", report, due, o.Since())
		}
		o.Over()
		if _, due := o.Lasts(); due || !o.Since().IsZero() {
			t.Error("it is not over")
		}
	})
}
