package ackpolicyweb

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// query says what a page shows: the overview or, where it names a topic, a partition.
type query struct {
	show       string // of the overview: "", "trouble" or "work"
	subscriber int
	topic      string
	partition  int32
	offset     int64 // the record to look at; -1: the one that holds the partition
}

func parseQuery(r *http.Request) (*query, error) {
	v := r.URL.Query()
	q := &query{topic: v.Get("topic"), offset: -1}
	if q.topic == "" {
		if q.show = v.Get("show"); q.show != "trouble" && q.show != "work" {
			q.show = ""
		}
		return q, nil
	}
	for _, n := range []struct {
		name string
		bits int
		set  func(int64)
	}{
		{"subscriber", 31, func(n int64) { q.subscriber = int(n) }},
		{"partition", 32, func(n int64) { q.partition = int32(n) }},
		{"offset", 64, func(n int64) { q.offset = n }},
	} {
		if text := v.Get(n.name); text != "" {
			i, err := strconv.ParseInt(text, 10, n.bits)
			if err != nil || i < 0 {
				return nil, fmt.Errorf("%s: want a number", n.name)
			}
			n.set(i)
		}
	}
	return q, nil
}

func (q *query) encode() string {
	v := url.Values{}
	if q.topic == "" {
		if q.show != "" {
			v.Set("show", q.show)
		}
		return v.Encode()
	}
	if q.subscriber > 0 {
		v.Set("subscriber", strconv.Itoa(q.subscriber))
	}
	v.Set("topic", q.topic)
	v.Set("partition", strconv.Itoa(int(q.partition)))
	if q.offset >= 0 {
		v.Set("offset", strconv.FormatInt(q.offset, 10))
	}
	return v.Encode()
}

// link is the address of a partition's page, relative to any page; with an offset, of one of its records.
func link(subscriber int, topic string, partition int32, offset int64) string {
	q := query{subscriber: subscriber, topic: topic, partition: partition, offset: offset}
	return "partition?" + q.encode()
}
