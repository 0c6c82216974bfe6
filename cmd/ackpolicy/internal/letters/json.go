package letters

import (
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/record"
)

// jsonLetter is a letter for scripts.
type jsonLetter struct {
	Partition  int32       `json:"partition"`
	Offset     int64       `json:"offset"`
	State      string      `json:"state"`
	Profile    string      `json:"profile,omitempty"`
	Origin     *jsonOrigin `json:"origin,omitempty"`
	Group      string      `json:"group,omitempty"`
	Handler    string      `json:"handler,omitempty"`
	Reason     string      `json:"reason,omitempty"`
	Attempts   int         `json:"attempts,omitempty"`
	Rejections int         `json:"rejections,omitempty"`
	RejectedAt *time.Time  `json:"rejected_at,omitempty"`
	record.Content
	To *jsonPlace `json:"to,omitempty"`
}

type jsonOrigin struct {
	Topic     string     `json:"topic"`
	Partition *int32     `json:"partition,omitempty"`
	Offset    *int64     `json:"offset,omitempty"`
	Timestamp *time.Time `json:"timestamp,omitempty"`
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
		Content: record.ContentOf(l.record, whole, whole),
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
		j.Origin.Timestamp = record.Presentable(l.Origin.Timestamp)
	}
	j.RejectedAt = record.Presentable(l.RejectedAt)
	return j
}
