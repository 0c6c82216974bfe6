package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
)

// Code of the application may have bugs: functions in its configuration, methods of its
// errors, its logger. A panic in one may cost no more than the attempt of the record that
// it was called for.

// errGoexit is the error of code that called runtime.Goexit.
var errGoexit = errors.New("it ended its goroutine (runtime.Goexit)")

// panicked is a panic in the application's code.
type panicked struct {
	what  string
	value any
}

func (p *panicked) Error() string { return fmt.Sprintf("%s panicked: %v", p.what, p.value) }

// guard calls code of the application and returns a panic in it as an error. It cannot
// stop a runtime.Goexit, but calls exited, which may be nil, while the goroutine ends.
func guard(what string, code func(), exited func(error)) (err error) {
	returned := false
	defer func() {
		r := recover()
		switch {
		case returned:
		case r != nil:
			err = &panicked{what, r}
		case exited != nil:
			exited(fmt.Errorf("%s: %w", what, errGoexit))
		}
	}()
	code()
	returned = true
	return nil
}

// textOf returns err.Error() for errors of the application. Package fmt survives a panic in it.
func textOf(err error) string { return fmt.Sprint(err) }

// sound returns an error whose Error does not panic: err itself, or its text.
func sound(err error) error {
	if guard("Error", func() { _ = err.Error() }, nil) != nil {
		return errors.New(textOf(err))
	}
	return err
}

// guardedLogger is the application's logger. A panic in it, or in a method of what it
// prints, must not end the operation that the line is about.
type guardedLogger struct{ watermill.LoggerAdapter }

func guardLogger(l watermill.LoggerAdapter) watermill.LoggerAdapter {
	if _, ok := l.(guardedLogger); ok || l == nil {
		return l
	}
	return guardedLogger{l}
}

func (l guardedLogger) Error(msg string, err error, fields watermill.LogFields) {
	if broken := guard("the logger", func() { l.LoggerAdapter.Error(msg, err, fields) }, nil); broken != nil {
		// Once more with the text of the error only: the panic may have been the error's.
		_ = guard("the logger", func() {
			l.LoggerAdapter.Error(msg, errors.New(textOf(err)), fields.Add(watermill.LogFields{"logger_failed": broken.Error()}))
		}, nil)
	}
}

func (l guardedLogger) Info(msg string, fields watermill.LogFields) {
	_ = guard("the logger", func() { l.LoggerAdapter.Info(msg, fields) }, nil)
}

func (l guardedLogger) Debug(msg string, fields watermill.LogFields) {
	_ = guard("the logger", func() { l.LoggerAdapter.Debug(msg, fields) }, nil)
}

func (l guardedLogger) Trace(msg string, fields watermill.LogFields) {
	_ = guard("the logger", func() { l.LoggerAdapter.Trace(msg, fields) }, nil)
}

func (l guardedLogger) With(fields watermill.LogFields) (with watermill.LoggerAdapter) {
	with = l
	_ = guard("the logger", func() { with = guardedLogger{l.LoggerAdapter.With(fields)} }, nil)
	return with
}

// debugging reports whether debug lines may be written anywhere. Watermill's LoggerAdapter
// does not know its level, and the fields of a line cost a microsecond or two even if the
// line is dropped, as by Watermill's adapter for slog. An adapter may have the method
// Enabled of slog.Logger.
func debugging(l watermill.LoggerAdapter) bool {
	if g, ok := l.(guardedLogger); ok {
		l = g.LoggerAdapter
	}
	switch l := l.(type) {
	case watermill.NopLogger:
		return false
	case *watermill.StdLoggerAdapter:
		return l.DebugLogger != nil
	case interface {
		Enabled(context.Context, slog.Level) bool
	}:
		return l.Enabled(context.Background(), slog.LevelDebug)
	}
	return true
}

// interceptors are the application's Consumer.Interceptors. sarama would call them once
// per record and change the record in memory: a letter would contain the changes, and a
// record that was read again would not. Here they get a copy for each delivery.
type interceptors struct {
	all    []sarama.ConsumerInterceptor
	broken outage.Outage
}

// intercept calls the interceptors with a record. One that panics is skipped, as by sarama;
// one that calls runtime.Goexit costs the attempt.
func (i *interceptors) intercept(record *sarama.ConsumerMessage, logger watermill.LoggerAdapter) {
	topic, partition, offset := record.Topic, record.Partition, record.Offset
	failed := func(err error) {
		if report, due := i.broken.Failed(); due {
			logger.Error("A Consumer.Interceptor failed", err, report.AddTo(watermill.LogFields{
				"topic": topic, "kafka_partition": partition, "kafka_partition_offset": offset,
			}))
		}
	}
	for _, interceptor := range i.all {
		if err := guard("the interceptor", func() { interceptor.OnConsume(record) }, failed); err != nil {
			failed(err)
		}
	}
}
