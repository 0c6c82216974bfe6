package ackpolicy

import (
	"fmt"
	"reflect"
	"strings"
)

// The names of settings may be spelt nack_on_error, NackOnError, nack-on-error or NACK_ON_ERROR.
func fold(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(strings.TrimSpace(s)))
}

// parse returns the number of a name. The name may have a prefix, as the constants in Go have.
func parse[T ~uint8](kind, prefix string, names []string, s string) (T, error) {
	for i, name := range names {
		if folded := fold(s); folded == fold(name) || prefix != "" && folded == prefix+fold(name) {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("ackpolicy: unknown %s %q: want one of %s", kind, s, strings.Join(names, ", "))
}

func nameOf[T ~uint8](kind string, names []string, v T) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("%s(%d)", kind, uint8(v))
}

func marshal[T ~uint8](kind string, names []string, v T) ([]byte, error) {
	if int(v) >= len(names) {
		return nil, fmt.Errorf("ackpolicy: no such %s: %d", kind, uint8(v))
	}
	return []byte(names[v]), nil
}

func unmarshal[T any](into *T, parsed T, err error) error {
	if err == nil {
		*into = parsed
	}
	return err
}

// ParsePolicy returns the policy with the given name. It accepts the spellings
// nack_on_error, NackOnError, nack-on-error and NACK_ON_ERROR.
func ParsePolicy(s string) (Policy, error) { return parse[Policy]("policy", "", policyNames[:], s) }

// MarshalText implements encoding.TextMarshaler.
func (p Policy) MarshalText() ([]byte, error) { return marshal("policy", policyNames[:], p) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Policy) UnmarshalText(text []byte) error {
	parsed, err := ParsePolicy(string(text))
	return unmarshal(p, parsed, err)
}

// ParseOrdering returns the ordering with the given name: partition, key or none, or the
// name of its constant.
func ParseOrdering(s string) (Ordering, error) {
	if fold(s) == "unordered" {
		return Unordered, nil
	}
	return parse[Ordering]("ordering", "orderby", orderingNames[:], s)
}

// MarshalText implements encoding.TextMarshaler.
func (o Ordering) MarshalText() ([]byte, error) { return marshal("ordering", orderingNames[:], o) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Ordering) UnmarshalText(text []byte) error {
	parsed, err := ParseOrdering(string(text))
	return unmarshal(o, parsed, err)
}

var undecodableNames = []string{"auto", "retry", "reject"}

// String returns "auto", "retry" or "reject".
func (u Undecodable) String() string { return nameOf("Undecodable", undecodableNames, u) }

// ParseUndecodable returns the value with the given name: auto, retry or reject, or the name
// of its constant.
func ParseUndecodable(s string) (Undecodable, error) {
	return parse[Undecodable]("Undecodable", "undecodable", undecodableNames, s)
}

// MarshalText implements encoding.TextMarshaler.
func (u Undecodable) MarshalText() ([]byte, error) {
	return marshal("Undecodable", undecodableNames, u)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *Undecodable) UnmarshalText(text []byte) error {
	parsed, err := ParseUndecodable(string(text))
	return unmarshal(u, parsed, err)
}

var unstorableNames = []string{"keep", "reduce", "give_up"}

// String returns "keep", "reduce" or "give_up".
func (u Unstorable) String() string { return nameOf("Unstorable", unstorableNames, u) }

// ParseUnstorable returns the value with the given name: keep, reduce or give_up, or the name
// of its constant.
func ParseUnstorable(s string) (Unstorable, error) {
	return parse[Unstorable]("Unstorable", "unstorable", unstorableNames, s)
}

// MarshalText implements encoding.TextMarshaler.
func (u Unstorable) MarshalText() ([]byte, error) { return marshal("Unstorable", unstorableNames, u) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *Unstorable) UnmarshalText(text []byte) error {
	parsed, err := ParseUnstorable(string(text))
	return unmarshal(u, parsed, err)
}

// ParseHeaderProfile returns the profile with the given name: ackpolicy, watermill, spring or
// kafka, or the name of its function.
func ParseHeaderProfile(s string) (HeaderProfile, error) {
	i, err := parse[uint8]("header profile", "headers", profileNames, s)
	if err != nil {
		return nil, err
	}
	return profiles[i], nil
}

// MarshalText implements encoding.TextMarshaler. A function of the application has no text.
func (p HeaderProfile) MarshalText() ([]byte, error) {
	for i, known := range profiles {
		if reflect.ValueOf(p).Pointer() == reflect.ValueOf(known).Pointer() {
			return []byte(profileNames[i]), nil
		}
	}
	return nil, fmt.Errorf("ackpolicy: the header profile is none of %s", strings.Join(profileNames, ", "))
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *HeaderProfile) UnmarshalText(text []byte) error {
	parsed, err := ParseHeaderProfile(string(text))
	return unmarshal(p, parsed, err)
}
