// Command bench runs this library beside its peers on one broker and prints a table.
//
//	scripts/kafka.sh run -- go -C bench run . --case noop
//	scripts/kafka.sh run -- go -C bench run . parked
//
// Every consumer runs in a separate process, in turn, several times. A figure is
// the median of the runs, with the lowest and the highest beside it. The rate is
// counted from the first record to the last, or to --limit; CPU and memory are the
// whole process's. See README.md.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"
)

// result is what a run prints, as JSON.
type result struct {
	Rate      float64 // records per second
	Allocs    float64 // a record
	CPUMicros float64 // a record
	PeakMiB   float64
}

func main() {
	var err error
	if job, ok := os.LookupEnv(jobEnv); ok {
		err = child(job)
	} else if name, ok := os.LookupEnv(childEnv); ok {
		err = experimentChild(name)
	} else {
		err = command().Execute()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const jobEnv = "ACKPOLICY_BENCH_JOB"

// child is one run of one consumer.
func child(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	c, err := find(j.Consumer)
	if err != nil {
		return err
	}
	if j.Serve {
		return serveChild(j, c)
	}
	r, err := measure(j, c.run, nil)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// measure runs a consumer to the job's end and returns the figures. It does not wait
// for the consumer to close: the process ends. each is the handler, if it is not the
// meter's own.
func measure(j job, run func(context.Context, job, *meter) error, each func(*meter, []byte)) (result, error) {
	var began time.Time
	var before, after runtime.MemStats
	var cpu time.Duration
	m := &meter{job: j, each: each, done: make(chan struct{})}
	m.begin = func() {
		runtime.ReadMemStats(&before)
		if j.Profile != "" {
			startProfile(j.Profile)
		}
		cpu = cpuTime()
		began = time.Now()
	}
	finished := make(chan result, 1)
	go func() {
		<-m.done
		took := time.Since(began)
		spent := cpuTime() - cpu
		runtime.ReadMemStats(&after)
		pprof.StopCPUProfile()
		_, peak := memoryOf("self") // not getrusage's, which begins with the parent's
		n := float64(m.handled())
		finished <- result{
			Rate:      n / took.Seconds(),
			Allocs:    float64(after.Mallocs-before.Mallocs) / n,
			CPUMicros: float64(spent.Microseconds()) / n,
			PeakMiB:   float64(peak) / (1 << 20),
		}
	}()
	failed := make(chan error, 1)
	go func() {
		if err := run(context.Background(), j, m); err != nil {
			failed <- fmt.Errorf("%s: %w", j.Consumer, err)
		}
	}()
	select {
	case r := <-finished:
		return r, nil
	case err := <-failed:
		return result{}, err
	}
}

func startProfile(file string) {
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	var f *os.File
	if err == nil {
		f, err = os.Create(file)
	}
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "no profile:", err)
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// command starts the program that has the job's consumer.
func (j job) command() ([]string, error) {
	c, err := find(j.Consumer)
	if err != nil {
		return nil, err
	}
	if c.peer != nil {
		dir, err := c.peer.ready()
		return c.peer.command(dir), err
	}
	self, err := os.Executable()
	return []string{self}, err
}

// start runs a job in a separate process.
func (b *bench) start(j job) (result, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return result{}, err
	}
	command, err := j.command()
	if err != nil {
		return result{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), jobEnv+"="+string(text))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); ctx.Err() != nil {
		return result{}, fmt.Errorf("%s did not end within %v\n%s", j.Consumer, b.timeout, stderr.String())
	} else if err != nil {
		return result{}, fmt.Errorf("%s: %w\n%s", j.Consumer, err, stderr.String())
	}
	var r result
	return r, json.Unmarshal(stdout.Bytes(), &r)
}
