// Package record shows records of any topic.
package record

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
)

// How a value is shown.
const (
	Auto = "auto" // as JSON or text, if it is that, else in hexadecimal
	JSON = "json"
	Text = "text"
	Hex  = "hex"
	None = "none"
	Raw  = "raw" // nothing but its bytes
)

// Formats are all but Raw.
var Formats = []string{Auto, JSON, Text, Hex, None}

// Print prints timestamp, headers, key and value of a record, safe for a terminal.
func Print(w io.Writer, m *sarama.ConsumerMessage, format string) {
	fmt.Fprintf(w, "timestamp  %s\n", m.Timestamp.UTC().Format(time.RFC3339Nano))
	for _, h := range m.Headers {
		value := "null"
		if h.Value != nil {
			value = cli.Clean(string(h.Value))
		}
		fmt.Fprintf(w, "header     %s: %s\n", cli.Clean(string(h.Key)), value)
	}
	fmt.Fprintf(w, "key        %s\n", cli.Text(m.Key, len(m.Key)))
	if m.Value == nil {
		fmt.Fprintf(w, "value      null\n")
		return
	}
	text, what := readable(m.Value, format)
	fmt.Fprintf(w, "value      %s%s\n%s", cli.Plural(len(m.Value), "byte", "bytes"), what, text)
}

// readable returns a value in a format, with a line break, and what it was taken for.
func readable(value []byte, format string) (text, what string) {
	var indented bytes.Buffer
	switch {
	case format == None:
		return "", ", not shown"
	case (format == Auto || format == JSON) && json.Indent(&indented, value, "", "  ") == nil:
		return cli.Multiline(indented.Bytes()) + "\n", ", JSON"
	case format == JSON:
		return cli.Multiline(value) + "\n", ", not JSON"
	case format == Text, format == Auto && utf8.Valid(value):
		return cli.Multiline(value) + "\n", ""
	}
	return hex.Dump(value), ""
}

// Content is what is in a record, for scripts. Bytes that are not UTF-8 come as base64.
type Content struct {
	Timestamp  *time.Time `json:"timestamp,omitempty"`
	Key        *string    `json:"key,omitempty"`
	KeyBase64  []byte     `json:"key_base64,omitempty"`
	ValueBytes int        `json:"value_bytes"`
	Value      *string    `json:"value,omitempty"`
	ValueB64   []byte     `json:"value_base64,omitempty"`
	Headers    []Header   `json:"headers,omitempty"`
}

// Header is a header of a record, for scripts.
type Header struct {
	Key      string  `json:"key"`
	Value    *string `json:"value,omitempty"`
	ValueB64 []byte  `json:"value_base64,omitempty"`
}

// ContentOf returns what is in a record.
func ContentOf(m *sarama.ConsumerMessage, headers, value bool) Content {
	c := Content{Timestamp: Presentable(m.Timestamp), ValueBytes: len(m.Value)}
	c.Key, c.KeyBase64 = textOrBytes(m.Key)
	if value {
		c.Value, c.ValueB64 = textOrBytes(m.Value)
	}
	if headers {
		for _, h := range m.Headers {
			header := Header{Key: string(h.Key)}
			header.Value, header.ValueB64 = textOrBytes(h.Value)
			c.Headers = append(c.Headers, header)
		}
	}
	return c
}

// Presentable returns nil for a time that JSON has no form for.
func Presentable(t time.Time) *time.Time {
	t = t.UTC()
	if t.IsZero() || t.Year() < 1 || t.Year() > 9999 {
		return nil
	}
	return &t
}

func textOrBytes(b []byte) (*string, []byte) {
	switch {
	case b == nil:
		return nil, nil
	case utf8.Valid(b):
		s := string(b)
		return &s, nil
	}
	return nil, b
}

// PrintJSON writes one line.
func PrintJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}
