package main

import (
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
)

// errorLog keeps what is logged as an error.
type errorLog struct {
	fields watermill.LogFields
	lines  *lines
}

type lines struct {
	mu  sync.Mutex
	all []string
}

func (l errorLog) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return errorLog{l.fields.Add(fields), l.lines}
}

func (l errorLog) Error(msg string, err error, fields watermill.LogFields) {
	if msg == "Handler returned error" { // the Router's own line, the same before and after
		return
	}
	line := fmt.Sprintf("%s: %v;", msg, err)
	fields = l.fields.Add(fields)
	for _, name := range []string{"kafka_partition", "kafka_partition_offset", "attempt"} {
		if value, ok := fields[name]; ok {
			line += fmt.Sprintf(" %s=%v", name, value)
		}
	}
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	l.lines.all = append(l.lines.all, line)
}

func (errorLog) Info(string, watermill.LogFields)  {}
func (errorLog) Debug(string, watermill.LogFields) {}
func (errorLog) Trace(string, watermill.LogFields) {}

func (l errorLog) all() []string {
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	return l.lines.all
}
