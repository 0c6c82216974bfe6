package testkit

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// Log keeps what is logged, and prints it if the test fails.
type Log struct {
	fields watermill.LogFields
	lines  *lines
}

func (l *Log) write(level, msg string, err error, fields watermill.LogFields) {
	text := fmt.Sprintf("%s %s: %s", time.Now().Format("05.000"), level, msg)
	if err != nil {
		text += " err=" + err.Error()
	}
	all := l.fields.Add(fields)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		text += fmt.Sprintf(" %s=%v", key, all[key])
	}
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	l.lines.all = append(l.lines.all, line{level, text})
}

// Error implements watermill.LoggerAdapter.
func (l *Log) Error(msg string, err error, fields watermill.LogFields) {
	l.write("error", msg, err, fields)
}

// Info implements watermill.LoggerAdapter.
func (l *Log) Info(msg string, fields watermill.LogFields) { l.write("info", msg, nil, fields) }

// Debug implements watermill.LoggerAdapter.
func (l *Log) Debug(msg string, fields watermill.LogFields) { l.write("debug", msg, nil, fields) }

// Trace implements watermill.LoggerAdapter.
func (l *Log) Trace(string, watermill.LogFields) {}

// With implements watermill.LoggerAdapter.
func (l *Log) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return &Log{fields: l.fields.Add(fields), lines: l.lines}
}

// At returns the lines of the levels.
func (l *Log) At(levels ...string) []string {
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	var texts []string
	for _, line := range l.lines.all {
		if slices.Contains(levels, line.level) {
			texts = append(texts, line.text)
		}
	}
	return texts
}

type lines struct {
	mu  sync.Mutex
	all []line
}

type line struct{ level, text string }

// NewLog makes a Log of the test.
func NewLog(t testing.TB) *Log {
	l := &Log{lines: &lines{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", strings.Join(l.At("error", "info"), "\n"))
		}
	})
	return l
}

// Containing returns those of the lines that contain all the words.
func Containing(texts []string, words ...string) []string {
	var found []string
	for _, text := range texts {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(text, word) }) {
			found = append(found, text)
		}
	}
	return found
}
