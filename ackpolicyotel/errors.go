package ackpolicyotel

import (
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// valid returns s as UTF-8. What came with a record may be anything, and exporters drop all that
// they send together with a text that is not.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// textOf returns err.Error() for errors of the application. Package fmt survives a panic in it.
func textOf(err error) string { return valid(fmt.Sprint(err)) }

// typeOf returns the type of an error, or what its method ErrorType says.
func typeOf(err error) (kind string) {
	defer func() {
		if recover() != nil {
			kind = fmt.Sprintf("%T", err)
		}
	}()
	return valid(semconv.ErrorType(err).Value.AsString())
}

func fail(span trace.Span, err error) {
	if err != nil {
		failAs(span, typeOf(err), textOf(err))
	}
}

func failAs(span trace.Span, kind, text string) {
	span.SetAttributes(semconv.ErrorTypeKey.String(kind))
	span.SetStatus(codes.Error, text)
}
