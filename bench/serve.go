package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// serveChild runs a consumer until standard input ends, and reports on standard output:
//
//	first MS            when the first record came, after the start
//	at N                record N came, if the job wants a trace
//	threads N           goroutines, for each line of input
//	closed MS RECORDS   how long closing took, and a bitmap of the handled records
//
// The programs in other languages do the same.
func serveChild(j job, c consumer) error {
	var first sync.Once
	handled := &recordSet{}
	began := time.Now()
	m := &meter{job: j, done: make(chan struct{}), each: func(m *meter, value []byte) {
		first.Do(func() { fmt.Println("first", millis(time.Since(began))) })
		number := decodeStamp(value).key
		if j.Trace {
			fmt.Println("at", number)
		}
		if j.Work > 0 {
			time.Sleep(j.Work)
		}
		handled.add(number)
	}}
	var closing atomic.Int64
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			fmt.Println("threads", runtime.NumGoroutine())
		}
		closing.Store(int64(time.Since(began)))
		m.finish()
	}()
	if err := c.run(context.Background(), j, m); err != nil {
		return err
	}
	fmt.Println("closed", millis(time.Since(began)-time.Duration(closing.Load())), handled)
	return nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// recordSet is a set of record numbers, a bit for each.
type recordSet struct {
	mu   sync.Mutex
	bits []byte
}

func (s *recordSet) add(number uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for int(number/8) >= len(s.bits) {
		s.bits = append(s.bits, make([]byte, len(s.bits)+1)...)
	}
	s.bits[number/8] |= 1 << (number % 8)
}

// String is the form in which a service reports it.
func (s *recordSet) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return base64.StdEncoding.EncodeToString(s.bits)
}

// common is how many numbers are in both sets.
func common(a, b []byte) (n int) {
	for i := range min(len(a), len(b)) {
		n += bits.OnesCount8(a[i] & b[i])
	}
	return n
}

// service is a consumer in a separate process that runs until it is stopped.
type service struct {
	name                   string
	cmd                    *exec.Cmd
	words                  io.WriteCloser // its standard input
	stderr                 bytes.Buffer
	first, threads, closed chan string
	ended                  chan struct{} // all of its output is read
}

// serve starts a service. at, which may be nil, is called for each record that it traces.
func serve(j job, at func(number int64)) (*service, error) {
	j.Serve, j.Trace = true, at != nil
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	command, err := j.command()
	if err != nil {
		return nil, err
	}
	s := &service{
		name: j.Consumer, cmd: exec.Command(command[0], command[1:]...),
		first: make(chan string, 1), threads: make(chan string, 1), closed: make(chan string, 1), ended: make(chan struct{}),
	}
	s.cmd.Env = append(os.Environ(), jobEnv+"="+string(text))
	s.cmd.Stderr = &s.stderr
	if s.words, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.ended)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			switch word, rest, _ := strings.Cut(lines.Text(), " "); word {
			case "first":
				s.first <- rest
			case "threads":
				s.threads <- rest
			case "closed":
				s.closed <- rest
			case "at":
				if number, err := strconv.ParseInt(rest, 10, 64); err == nil && at != nil {
					at(number)
				}
			}
		}
	}()
	return s, nil
}

// wait returns what the service reports next on one of its channels.
func (s *service) wait(what string, on <-chan string, timeout time.Duration) (string, error) {
	select {
	case text := <-on:
		return text, nil
	case <-s.ended:
		select {
		case text := <-on:
			return text, nil
		default:
		}
		return "", s.failure()
	case <-time.After(timeout):
		return "", fmt.Errorf("%s: no %q within %v", s.name, what, timeout)
	}
}

// failure is the error of a service that has ended by itself.
func (s *service) failure() error {
	err := s.cmd.Wait()
	return fmt.Errorf("%s ended: %v\n%s", s.name, err, s.stderr.String())
}

const serviceTimeout = time.Minute

// started waits for its first record, and returns how long after its start that came, in milliseconds.
func (s *service) started() (float64, error) {
	text, err := s.wait("first", s.first, serviceTimeout)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(text, 64)
}

// goroutines are those of a program in Go, and the threads of another one.
func (s *service) goroutines() (float64, error) {
	if _, err := fmt.Fprintln(s.words); err != nil {
		return 0, err
	}
	text, err := s.wait("threads", s.threads, serviceTimeout)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(text, 64)
}

// cpu is the processor time that the process has taken.
func (s *service) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// Behind the program's name, which is in parentheses: user and system time are the 12th and 13th field.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("/proc: too few fields")
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	const tick = 10 * time.Millisecond // Linux reports hundredths of a second, whatever its own clock
	return time.Duration(ticks) * tick, nil
}

// resident is the resident memory in MiB.
func (s *service) resident() float64 {
	now, _ := memoryOf(strconv.Itoa(s.cmd.Process.Pid))
	return float64(now) / (1 << 20)
}

// stop closes the consumer gracefully. It returns how long that took, in milliseconds, and the set of the records that
// it has handled.
func (s *service) stop() (took float64, handled []byte, err error) {
	if err := s.words.Close(); err != nil {
		return 0, nil, errors.Join(err, s.end())
	}
	text, err := s.wait("closed", s.closed, serviceTimeout)
	if err := errors.Join(err, s.end()); err != nil {
		return 0, nil, err
	}
	number, set, _ := strings.Cut(text, " ")
	if took, err = strconv.ParseFloat(number, 64); err != nil {
		return 0, nil, err
	}
	handled, err = base64.StdEncoding.DecodeString(set)
	return took, handled, err
}

// end ends the process, if it has not ended by itself.
func (s *service) end() error {
	late := time.AfterFunc(5*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer late.Stop()
	<-s.ended
	_ = s.words.Close()
	return s.cmd.Wait()
}

// kill ends the process at once. It may have ended before.
func (s *service) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
	_ = s.cmd.Wait()
}
