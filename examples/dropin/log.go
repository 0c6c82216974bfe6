package main

import (
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
)

// errorLog keeps what is logged as an error.
type errorLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *errorLog) Error(msg string, err error, fields watermill.LogFields) {
	if msg == "Handler returned error" { // the Router's own line, the same before and after
		return
	}
	line := fmt.Sprintf("%s: %v", msg, err)
	for _, name := range []string{"topic", "partition", "offset", "reason"} {
		if value, ok := fields[name]; ok {
			line += fmt.Sprintf(" %s=%v", name, value)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (*errorLog) Info(string, watermill.LogFields)                          {}
func (*errorLog) Debug(string, watermill.LogFields)                         {}
func (*errorLog) Trace(string, watermill.LogFields)                         {}
func (l *errorLog) With(fields watermill.LogFields) watermill.LoggerAdapter { return l }

func (l *errorLog) rejects() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines
}
