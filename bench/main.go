// Command bench runs this library beside its peers on one broker and prints a table.
//
//	scripts/kafka.sh run 4.3.0 -- go -C bench run . -case noop
//
// Every consumer runs in a process of its own, in turn, several times. A figure is
// the median of the runs, with the lowest and the highest beside it. The rate is
// counted from the first record to the last; CPU and memory are the whole process's.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"
)

// result is what a run prints, as JSON.
type result struct {
	Rate      float64 // records a second
	Allocs    float64 // a record
	CPUMicros float64 // a record
	PeakMiB   float64
}

func main() {
	if text := os.Getenv("ACKPOLICY_BENCH_JOB"); text != "" {
		if err := child(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var (
		names   = flag.String("case", "noop,1ms,10ms", "cases to run, by comma; -list shows them")
		only    = flag.String("only", "", "consumers to run, by comma; empty: those of the case")
		runs    = flag.Int("runs", 3, "runs of each consumer")
		list    = flag.Bool("list", false, "list cases and consumers")
		out     = flag.String("o", "", "write the tables as Markdown to this file, and a chart beside it")
		profile = flag.String("profile", "", "write a CPU profile of each consumer's last run to this folder")
		timeout = flag.Duration("timeout", 2*time.Minute, "limit of one run")
	)
	flag.Parse()
	if *list {
		printList()
		return
	}
	brokers := os.Getenv("KAFKA_BROKERS")
	if brokers == "" {
		fmt.Fprintln(os.Stderr, "KAFKA_BROKERS is not set: run through scripts/kafka.sh run 4.3.0 -- go -C bench run .")
		os.Exit(2)
	}
	b := &bench{brokers: strings.Split(brokers, ","), runs: *runs, timeout: *timeout, profile: *profile}
	if *only != "" {
		b.only = strings.Split(*only, ",")
	}
	for name := range strings.SplitSeq(*names, ",") {
		if err := b.run(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if *out != "" {
		if err := b.write(*out); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

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
	var began time.Time
	var before, after runtime.MemStats
	var cpu time.Duration
	m := &meter{job: j, done: make(chan struct{})}
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
		n := float64(j.Records)
		finished <- result{
			Rate:      n / took.Seconds(),
			Allocs:    float64(after.Mallocs-before.Mallocs) / n,
			CPUMicros: float64(spent.Microseconds()) / n,
		}
	}()
	go func() {
		if err := c.run(context.Background(), j, m); err != nil {
			fmt.Fprintln(os.Stderr, j.Consumer+":", err)
			os.Exit(1)
		}
	}()
	r := <-finished
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err == nil {
		r.PeakMiB = float64(usage.Maxrss) / 1024
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func startProfile(file string) {
	f, err := os.Create(file)
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

// start runs a job in a process of its own.
func (b *bench) start(j job) (result, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return result{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return result{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), "ACKPOLICY_BENCH_JOB="+string(text))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return result{}, fmt.Errorf("%s: %w\n%s", j.Consumer, err, stderr.String())
	}
	var r result
	return r, json.Unmarshal(stdout.Bytes(), &r)
}
