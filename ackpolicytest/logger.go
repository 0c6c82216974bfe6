package ackpolicytest

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
)

// Logger returns a logger that writes to the test's log, at levels error and info.
func (k *Kafka) Logger() watermill.LoggerAdapter { return logger{t: k.t} }

type logger struct {
	t      testing.TB
	fields watermill.LogFields
}

func (l logger) log(level, msg string, err error, fields watermill.LogFields) {
	text := level + " " + msg
	if err != nil {
		text += ": " + err.Error()
	}
	all := l.fields.Add(fields)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		text += fmt.Sprintf(" %s=%v", name, all[name])
	}
	l.t.Log(text)
}

// Error implements watermill.LoggerAdapter, as the methods below do.
func (l logger) Error(msg string, err error, fields watermill.LogFields) {
	l.log("error", msg, err, fields)
}
func (l logger) Info(msg string, fields watermill.LogFields) { l.log("info", msg, nil, fields) }
func (l logger) Debug(string, watermill.LogFields)           {}
func (l logger) Trace(string, watermill.LogFields)           {}
func (l logger) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return logger{l.t, l.fields.Add(fields)}
}
