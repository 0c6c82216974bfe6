package ackpolicy

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strconv"
	"time"
)

// NeverRetry returns a function for Middleware.Classify that rejects a record at its
// first delivery if no later one can succeed: if the error is one of the targets
// (errors.Is), or IsPermanent reports true.
//
//	Classify: ackpolicy.NeverRetry(ErrUnknownCustomer),
func NeverRetry(targets ...error) func(err error) (Policy, bool) {
	return func(err error) (Policy, bool) {
		for _, target := range targets {
			if errors.Is(err, target) {
				return RejectOnError, true
			}
		}
		return RejectOnError, IsPermanent(err)
	}
}

// IsPermanent reports whether err, or an error that it wraps, will occur again at the
// next attempt: it has a method Permanent() bool that returns true, it is
// errors.ErrUnsupported, or it is an error of the standard library for malformed input
// (JSON, base64, hexadecimal, numbers, times).
func IsPermanent(err error) bool {
	var own interface{ Permanent() bool }
	if errors.As(err, &own) {
		return own.Permanent()
	}
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, hex.ErrLength) ||
		is[*json.SyntaxError](err) || is[*json.UnmarshalTypeError](err) ||
		is[base64.CorruptInputError](err) || is[hex.InvalidByteError](err) ||
		is[*strconv.NumError](err) || is[*time.ParseError](err)
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
