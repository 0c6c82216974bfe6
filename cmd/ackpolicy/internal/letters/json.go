package letters

import (
	"encoding/json"
	"io"
	"time"
	"unicode/utf8"
)

// jsonLetter is a letter for scripts. Bytes that are not UTF-8 come as base64.
type jsonLetter struct {
	Partition  int32        `json:"partition"`
	Offset     int64        `json:"offset"`
	State      string       `json:"state"`
	Profile    string       `json:"profile,omitempty"`
	Origin     *jsonOrigin  `json:"origin,omitempty"`
	Group      string       `json:"group,omitempty"`
	Handler    string       `json:"handler,omitempty"`
	Reason     string       `json:"reason,omitempty"`
	Attempts   int          `json:"attempts,omitempty"`
	Rejections int          `json:"rejections,omitempty"`
	RejectedAt *time.Time   `json:"rejected_at,omitempty"`
	Timestamp  *time.Time   `json:"timestamp,omitempty"`
	Key        *string      `json:"key,omitempty"`
	KeyBase64  []byte       `json:"key_base64,omitempty"`
	ValueBytes int          `json:"value_bytes"`
	Value      *string      `json:"value,omitempty"`
	ValueB64   []byte       `json:"value_base64,omitempty"`
	Headers    []jsonHeader `json:"headers,omitempty"`
	To         *jsonPlace   `json:"to,omitempty"`
}

type jsonOrigin struct {
	Topic     string     `json:"topic"`
	Partition *int32     `json:"partition,omitempty"`
	Offset    *int64     `json:"offset,omitempty"`
	Timestamp *time.Time `json:"timestamp,omitempty"`
}

type jsonHeader struct {
	Key      string  `json:"key"`
	Value    *string `json:"value,omitempty"`
	ValueB64 []byte  `json:"value_base64,omitempty"`
}

type jsonPlace struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    *int64 `json:"offset,omitempty"`
}

func forScripts(l *letter, done, whole bool) *jsonLetter {
	j := &jsonLetter{
		Partition: l.record.Partition, Offset: l.record.Offset, State: state(done),
		Group: l.Group, Handler: l.Handler, Reason: l.Reason, Attempts: l.Attempts, Rejections: l.Rejections,
		Timestamp: presentable(l.record.Timestamp), ValueBytes: len(l.record.Value),
	}
	if l.profile != nil {
		j.Profile = l.profile.name
	}
	if l.Origin.Topic != "" {
		j.Origin = &jsonOrigin{Topic: l.Origin.Topic}
		if l.Origin.Partition >= 0 {
			j.Origin.Partition = &l.Origin.Partition
		}
		if l.Origin.Offset >= 0 {
			j.Origin.Offset = &l.Origin.Offset
		}
		j.Origin.Timestamp = presentable(l.Origin.Timestamp)
	}
	j.RejectedAt = presentable(l.RejectedAt)
	j.Key, j.KeyBase64 = textOrBytes(l.record.Key)
	if whole {
		j.Value, j.ValueB64 = textOrBytes(l.record.Value)
		for _, h := range l.record.Headers {
			header := jsonHeader{Key: string(h.Key)}
			header.Value, header.ValueB64 = textOrBytes(h.Value)
			j.Headers = append(j.Headers, header)
		}
	}
	return j
}

// presentable is nil for a time that JSON has no form for.
func presentable(t time.Time) *time.Time {
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

// printJSON writes one line.
func printJSON(w io.Writer, j *jsonLetter) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(j)
}
