// Package settings fills structs from JSON. It differs from encoding/json in what matters for
// configuration: a key is the name of a field in any usual spelling (max_age, maxAge, MaxAge),
// an unknown key is an error that suggests one, durations are texts such as "10s", what is not
// mentioned keeps its value, and all mistakes are reported together, each with its path.
package settings

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Decoder knows how to fill what has no text of its own.
type Decoder struct {
	// Types has functions for types: interfaces and functions, above all.
	Types map[reflect.Type]func(d *Decoder, value json.RawMessage, into reflect.Value) error
	// Fields has functions for fields, by the end of their path, such as "Offsets.Initial".
	// They take precedence over Types.
	Fields map[string]func(d *Decoder, value json.RawMessage, into reflect.Value) error
	// Names has other names of fields.
	Names map[string]string
}

// Decode fills a struct, to which into points.
func (d *Decoder) Decode(text []byte, into any) error {
	var value json.RawMessage
	if err := json.Unmarshal(text, &value); err != nil {
		return err
	}
	return d.Fill(value, reflect.ValueOf(into).Elem())
}

// Fill sets into, which can be set, from a value.
func (d *Decoder) Fill(value json.RawMessage, into reflect.Value) error {
	return d.fill("", "", value, into)
}

func (d *Decoder) fill(path, field string, value json.RawMessage, into reflect.Value) error {
	if string(value) == "null" {
		return nil
	}
	for end, fill := range d.Fields {
		if field == end || strings.HasSuffix(field, "."+end) {
			return at(path, fill(d, value, into))
		}
	}
	if fill := d.Types[into.Type()]; fill != nil {
		return at(path, fill(d, value, into))
	}
	if text, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		s, err := Text(value)
		if err == nil {
			err = text.UnmarshalText([]byte(s))
		}
		return at(path, err)
	}
	switch kind := into.Kind(); {
	case into.Type() == reflect.TypeFor[time.Duration]():
		return at(path, duration(value, into))
	case kind == reflect.Pointer:
		filled := reflect.New(into.Type().Elem())
		if !into.IsNil() {
			filled.Elem().Set(into.Elem()) // a copy: others may have the pointer
		}
		if err := d.fill(path, field, value, filled.Elem()); err != nil {
			return err
		}
		into.Set(filled)
		return nil
	case kind == reflect.Struct:
		return d.object(path, field, value, into)
	case kind == reflect.Slice:
		return d.list(path, field, value, into)
	case kind == reflect.Func, kind == reflect.Interface, kind == reflect.Chan:
		return at(path, errors.New("it can only be set in code"))
	}
	return at(path, plain(value, into))
}

// object fills a struct.
func (d *Decoder) object(path, field string, value json.RawMessage, into reflect.Value) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(value, &members); err != nil {
		return at(path, fmt.Errorf("%s: want an object with the settings %s", value, strings.Join(keys(into.Type()), ", ")))
	}
	var errs []error
	set := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(members)) {
		below := strings.TrimPrefix(path+"."+key, ".")
		name := d.find(into.Type(), key)
		switch {
		case name == "":
			errs = append(errs, at(below, fmt.Errorf("no such setting: do you mean %s?", nearest(key, keys(into.Type())))))
		case set[name] != "":
			errs = append(errs, at(below, fmt.Errorf("it is the same setting as %s", set[name])))
		default:
			set[name] = key
			errs = append(errs, d.fill(below, strings.TrimPrefix(field+"."+name, "."), members[key], into.FieldByName(name)))
		}
	}
	return errors.Join(errs...)
}

// find returns the name of the field that a key means, or "".
func (d *Decoder) find(t reflect.Type, key string) string {
	folded := fold(key)
	if name, ok := d.Names[folded]; ok {
		folded = fold(name)
	}
	for _, f := range reflect.VisibleFields(t) {
		if f.IsExported() && len(f.Index) == 1 && fold(f.Name) == folded {
			return f.Name
		}
	}
	return ""
}

func (d *Decoder) list(path, field string, value json.RawMessage, into reflect.Value) error {
	var members []json.RawMessage
	if err := json.Unmarshal(value, &members); err != nil {
		return at(path, fmt.Errorf("%s: want a list", value))
	}
	filled := reflect.MakeSlice(into.Type(), len(members), len(members))
	var errs []error
	for i, member := range members {
		errs = append(errs, d.fill(fmt.Sprintf("%s[%d]", path, i), field, member, filled.Index(i)))
	}
	into.Set(filled)
	return errors.Join(errs...)
}

// Text returns a value that is a text, or a number as it is written.
func Text(value json.RawMessage) (string, error) {
	var s string
	if json.Unmarshal(value, &s) == nil {
		return s, nil
	}
	if n := json.Number(""); json.Unmarshal(value, &n) == nil {
		return n.String(), nil
	}
	return "", fmt.Errorf("%s: want a text", value)
}

func duration(value json.RawMessage, into reflect.Value) error {
	s, err := Text(value)
	if err == nil {
		var parsed time.Duration
		if parsed, err = time.ParseDuration(s); err == nil {
			into.SetInt(int64(parsed))
			return nil
		}
	}
	return fmt.Errorf(`%s: want a duration such as "500ms", "10s" or "15m"`, value)
}

// plain fills a number, a text, a truth value or a map.
func plain(value json.RawMessage, into reflect.Value) error {
	if s := ""; into.CanInt() && json.Unmarshal(value, &s) == nil && fold(s) == "unlimited" {
		into.SetInt(-1)
		return nil
	}
	if into.Kind() == reflect.Map && !into.IsNil() { // a copy: others may have the map
		own := reflect.MakeMap(into.Type())
		for _, key := range into.MapKeys() {
			own.SetMapIndex(key, into.MapIndex(key))
		}
		into.Set(own)
	}
	err := json.Unmarshal(value, into.Addr().Interface())
	if err == nil {
		return nil
	}
	switch into.Kind() {
	case reflect.Map:
		return err
	case reflect.Bool:
		return fmt.Errorf("%s: want true or false", value)
	case reflect.String:
		return fmt.Errorf("%s: want a text", value)
	}
	return fmt.Errorf("%s: want a number (%v)", value, into.Kind())
}

// mistake is an error of one setting.
type mistake struct {
	path string
	err  error
}

func (m *mistake) Error() string { return m.path + ": " + m.err.Error() }
func (m *mistake) Unwrap() error { return m.err }

// at adds a path to an error, or to each of several.
func at(path string, err error) error {
	if err == nil || path == "" {
		return err
	}
	switch err := err.(type) {
	case interface{ Unwrap() []error }:
		var all []error
		for _, one := range err.Unwrap() {
			all = append(all, at(path, one))
		}
		return errors.Join(all...)
	case *mistake:
		if !strings.HasPrefix(err.path, "[") {
			path += "."
		}
		return &mistake{path + err.path, err.err}
	}
	return &mistake{path, err}
}

// fold makes the spellings of a name equal.
func fold(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s))
}

// keys returns the names of a struct's settings as they are usually spelt.
func keys(t reflect.Type) (all []string) {
	for _, f := range reflect.VisibleFields(t) {
		if f.IsExported() && len(f.Index) == 1 {
			all = append(all, snake(f.Name))
		}
	}
	return all
}

// snake returns a field's name as a key: MaxInFlight as max_in_flight, OTELEnabled as otel_enabled.
func snake(name string) string {
	var s strings.Builder
	letters := []rune(name)
	for i, r := range letters {
		if i > 0 && unicode.IsUpper(r) && (unicode.IsLower(letters[i-1]) || i+1 < len(letters) && unicode.IsLower(letters[i+1])) {
			s.WriteByte('_')
		}
		s.WriteRune(unicode.ToLower(r))
	}
	return s.String()
}

// nearest returns the candidate that a misspelt name resembles most.
func nearest(name string, candidates []string) string {
	if len(candidates) == 0 {
		return "none"
	}
	return slices.MinFunc(candidates, func(a, b string) int { return distance(fold(name), fold(a)) - distance(fold(name), fold(b)) })
}

// distance returns how many letters must be added, removed or replaced to make a of b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
