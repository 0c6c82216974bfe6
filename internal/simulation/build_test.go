package simulation

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// sarama holds mutexes for whole round trips: that of a Broker, that of a session for its heartbeat,
// and behind them that of a client. A goroutine that waits for a mutex is not durably blocked: as soon
// as a second one asks, the bubble's time stands still, and the response never comes. So the histories
// run in a binary in which sarama's mutexes wait on channels. Nothing else is changed in it, but for
// racyRead.
const bubbleMutex = `package sarama

import "sync"

type bubbleRWMutex struct {
	mu      sync.Mutex
	writing bool
	reading int
	waiting []bubbleWaiter
}

type bubbleWaiter struct {
	writes bool
	turn   chan struct{}
}

func (m *bubbleRWMutex) lock(writes bool) {
	m.mu.Lock()
	w := bubbleWaiter{writes, make(chan struct{})}
	m.waiting = append(m.waiting, w)
	m.grant()
	m.mu.Unlock()
	<-w.turn
}

// grant hands the lock to those that have waited longest.
func (m *bubbleRWMutex) grant() {
	for len(m.waiting) > 0 && !m.writing && (!m.waiting[0].writes || m.reading == 0) {
		w := m.waiting[0]
		m.waiting = m.waiting[1:]
		if w.writes {
			m.writing = true
		} else {
			m.reading++
		}
		close(w.turn)
	}
}

func (m *bubbleRWMutex) TryLock() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writing || m.reading > 0 {
		return false
	}
	m.writing = true
	return true
}

func (m *bubbleRWMutex) Lock()  { m.lock(true) }
func (m *bubbleRWMutex) RLock() { m.lock(false) }

func (m *bubbleRWMutex) Unlock() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writing = false
	m.grant()
}

func (m *bubbleRWMutex) RUnlock() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reading--
	m.grant()
}

type bubbleMutex = bubbleRWMutex
`

// racyRead is read without the lock under which it is written, when Produce fails for two batches of a
// transaction (docs/design.md): the race detector would fail a history for it.
const (
	racyRead   = "return t.lastError"
	lockedRead = "return func() error { t.statusLock.RLock(); defer t.statusLock.RUnlock(); return t.lastError }()"
)

// build makes the binary that plays histories, and returns its path.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	module := filepath.Dir(run(t, "env", "GOMOD"))
	modfile, binary := filepath.Join(dir, "go.mod"), filepath.Join(dir, "simulation.test")
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(module, name))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	run(t, "mod", "edit", "-replace", "github.com/IBM/sarama="+patchedSarama(t), modfile)
	args := []string{"test", "-c", "-modfile", modfile, "-o", binary}
	if raced() {
		args = append(args, "-race")
	}
	run(t, append(args, ".")...)
	return binary
}

// patchedSarama returns the directory of the changed copy. It stays for the next run: what is built
// from it is cached by its path.
func patchedSarama(t *testing.T) string {
	t.Helper()
	original := run(t, "list", "-m", "-f", "{{.Dir}}", "github.com/IBM/sarama")
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	copied := filepath.Join(cache, "ackpolicy-simulation", filepath.Base(original))
	patched := 0
	check(t, filepath.WalkDir(original, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
			return err
		}
		name, err := filepath.Rel(original, path)
		if err != nil || filepath.Ext(name) != ".go" && name != "go.mod" {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := strings.ReplaceAll(string(source), racyRead, lockedRead)
		if filepath.Dir(name) == "." && (strings.Contains(text, "sync.Mutex") || strings.Contains(text, "sync.RWMutex")) {
			text = strings.NewReplacer("sync.Mutex", "bubbleMutex", "sync.RWMutex", "bubbleRWMutex").Replace(text) + "\nvar _ sync.Locker\n"
			patched++
		}
		return write(filepath.Join(copied, name), text)
	}))
	if patched == 0 {
		t.Fatal("sarama has no mutex: is this file needed any more?")
	}
	check(t, write(filepath.Join(copied, "bubble_mutex.go"), bubbleMutex))
	return copied
}

// write leaves alone what is right already: another run may be reading it.
func write(name, text string) error {
	if before, err := os.ReadFile(name); err == nil && string(before) == text {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(text), 0o644)
}

// run runs the go command.
func run(t *testing.T, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("go", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v: %s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// raced reports whether this binary was built with -race.
func raced() bool {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}
