package letters

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// filter chooses letters. What is not set chooses all.
type filter struct {
	at           places
	origin       []string
	handler      []string
	rejectedBy   []string
	reason       *regexp.Regexp
	key          *string
	since, until time.Time
}

func (f *filter) chooses(l *letter) bool {
	switch {
	case !f.at.has(l.record.Partition, l.record.Offset),
		len(f.origin) > 0 && !slices.Contains(f.origin, l.Origin.Topic),
		len(f.handler) > 0 && !slices.Contains(f.handler, l.Handler),
		len(f.rejectedBy) > 0 && !slices.Contains(f.rejectedBy, l.Group),
		f.reason != nil && !f.reason.MatchString(l.Reason),
		f.key != nil && (l.record.Key == nil || string(l.record.Key) != *f.key),
		!f.since.IsZero() && l.RejectedAt.Before(f.since), // also where it is not known
		!f.until.IsZero() && (l.RejectedAt.IsZero() || l.RejectedAt.After(f.until)):
		return false
	}
	return true
}

// narrow reports whether some letters may not be chosen.
func (f *filter) narrow() bool {
	return f.at != nil || len(f.origin)+len(f.handler)+len(f.rejectedBy) > 0 || f.reason != nil || f.key != nil ||
		!f.since.IsZero() || !f.until.IsZero()
}

// places are spans of offsets by partition; nil is everywhere.
type places map[int32][]span

func (p places) has(partition int32, offset int64) bool {
	if p == nil {
		return true
	}
	return slices.ContainsFunc(p[partition], func(s span) bool { return s.from <= offset && offset < s.to })
}

// within returns what of a partition's span the places reach.
func (p places) within(partition int32, s span) span {
	if p == nil {
		return s
	}
	reach := span{s.to, s.from}
	for _, place := range p[partition] {
		reach = span{min(reach.from, place.from), max(reach.to, place.to)}
	}
	return span{max(reach.from, s.from), min(reach.to, s.to)}
}

// words follow the topic's name where not all of it was asked for.
func (p places) words() string {
	if p == nil {
		return ""
	}
	return " in the partitions of --at"
}

// parsePlaces reads "2", "2:17", "2:17-40", "2:17-" and lists of them.
func parsePlaces(text string) (places, error) {
	p := places{}
	for _, item := range strings.Split(text, ",") {
		where, offsets, some := strings.Cut(strings.TrimSpace(item), ":")
		partition, err := strconv.ParseInt(where, 10, 32)
		s := span{0, math.MaxInt64}
		if err == nil && some {
			first, last, isRange := strings.Cut(offsets, "-")
			s.from, err = strconv.ParseInt(first, 10, 64)
			if !isRange {
				last = first
			}
			if err == nil && last != "" {
				s.to, err = strconv.ParseInt(last, 10, 64)
				if s.to < math.MaxInt64 {
					s.to++
				}
			}
		}
		if err != nil || partition < 0 || s.from < 0 || s.from >= s.to {
			return nil, fmt.Errorf("%q is not a place: want PARTITION, PARTITION:OFFSET or PARTITION:FIRST-LAST", item)
		}
		p[int32(partition)] = append(p[int32(partition)], s)
	}
	return p, nil
}

// parseMoment reads a time, or how long ago it is.
func parseMoment(text string, now time.Time) (time.Time, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok { // which time.ParseDuration does not know
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), nil
		}
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: want 2006-01-02T15:04:05Z, a date (both UTC), or how long ago, such as 90m or 2d", text)
}
