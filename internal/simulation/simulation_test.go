package simulation

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rcrowley/go-metrics"
)

var (
	seed         = flag.Uint64("seed", 0, "the seed to play; 0: -seeds from -from on")
	from         = flag.Uint64("from", 1, "the first seed")
	seeds        = flag.Uint64("seeds", 400, "how many seeds are played at most")
	limit        = flag.Duration("for", 15*time.Second, "how long seeds are played at most")
	times        = flag.Int("times", 1, "how often each seed is played")
	trace        = flag.Bool("trace", false, "print all that happens in a history that fails")
	transactions = flag.Bool("transactions", false, "every history has transactions, not only one of four")
	inner        = flag.Bool("inner", false, "this is the process that plays: the test itself sets it")
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSimulation plays histories, each from a seed.
func TestSimulation(t *testing.T) {
	if *inner {
		playAll(t)
		return
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("it builds what it plays: ", err)
	}
	binary, procs := build(t), runtime.GOMAXPROCS(0)
	if *seed != 0 {
		*from, *seeds, procs = *seed, 1, 1
	}
	var all sync.WaitGroup
	for i := range procs {
		n := *seeds / uint64(procs)
		cmd := exec.Command(binary, "-test.run=^TestSimulation$", fmt.Sprint("-test.timeout=", *limit+2*stalled), "-inner", fmt.Sprint("-from=", *from+uint64(i)*n), fmt.Sprint("-seeds=", n),
			fmt.Sprint("-for=", *limit), fmt.Sprint("-times=", *times), fmt.Sprint("-trace=", *trace), fmt.Sprint("-transactions=", *transactions))
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1") // or no two runs of a seed are alike
		all.Go(func() {
			out, err := cmd.CombinedOutput()
			text := strings.TrimSuffix(strings.TrimSpace(string(out)), "\nPASS")
			if err != nil {
				t.Errorf("%v\n%s", err, text)
			} else {
				t.Log(text)
			}
		})
	}
	all.Wait()
}

func playAll(t *testing.T) {
	metrics.UseNilMetrics = true // its goroutine lives in no bubble
	began, played, virtual := time.Now(), 0, time.Duration(0)
	for s := *from; s < *from+*seeds && time.Since(began) < *limit; s++ {
		for range *times {
			took, ok := one(t, newPlan(s))
			if !ok {
				return
			}
			played++
			virtual += took
		}
	}
	took := time.Since(began)
	fmt.Printf("seeds from %d: %d histories in %v, %.0f a minute, %v of their own time\n", *from, played, took.Round(time.Millisecond), float64(played)/took.Minutes(), virtual.Round(time.Second))
}

// stalled is how long a history may take by the clock on the wall.
const stalled = time.Minute

func one(t *testing.T, p plan) (took time.Duration, ok bool) {
	var w *world
	hangs := time.AfterFunc(stalled, func() {
		if w != nil && w.mu.TryLock() {
			fmt.Printf("requests by key: %v\n", w.requests)
			for _, l := range w.lines[max(0, len(w.lines)-40):] {
				fmt.Println(l)
			}
		}
		stacks := make([]byte, 4<<20)
		fmt.Printf("a history hangs: %v\n%s\n", p, stacks[:runtime.Stack(stacks, true)])
		os.Exit(1)
	})
	defer hangs.Stop()
	defer func() {
		if r := recover(); r != nil {
			fmt.Printf("%v\n%v\n", p, r)
			panic(r)
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		w = newWorld(p)
		w.play(t)
		took = w.now()
	})
	if len(w.violations) == 0 {
		return took, !t.Failed()
	}
	share := ""
	if *transactions {
		share = " -transactions"
	}
	fmt.Printf("%v\n%d violations; play it again with: go test -run TestSimulation ./internal/simulation -args -seed %d%s\n", p, len(w.violations), p.seed, share)
	for i, v := range w.violations[:min(len(w.violations), 10)] {
		fmt.Printf("%s: %s\n", v.rule, v.what)
		switch {
		case i == 0 && *trace:
			fmt.Print(w.life(violation{part: -1}))
		case i == 0:
			fmt.Print(w.life(v))
		}
	}
	t.Fail()
	return took, false
}
