package ackpolicy

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strconv"
	"time"
)

// NeverRetry makes a Middleware.Classify that gives a record up at its first
// delivery, as RejectOnError does, where no later one can succeed: the error is one
// of the targets, by errors.Is, or IsPermanent.
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

// IsPermanent reports whether err, or an error that it wraps, will be the same at the
// next attempt: it has a method Permanent() bool that returns true; it is
// errors.ErrUnsupported; or it is what the standard library's decoders say of input that they cannot
// read: JSON, base64, hexadecimal, numbers and times.
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
