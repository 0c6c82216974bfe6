package ackpolicyotel

import (
	"maps"
	"strconv"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// partition identifies a partition of a group.
type partition struct {
	group, topic string
	number       int32
}

func partitionOf(at ackpolicy.PartitionRef) partition {
	return partition{at.Group, at.Topic, at.Partition}
}

// operation is what a span is about.
type operation uint8

const (
	process operation = iota
	ack
	nack
	reject
	letter
	operations
)

var operationNames = [operations]string{"process", "ack", "nack", "reject", "dead_letter"}

var operationOf = map[ackpolicy.Status]operation{ackpolicy.Acked: ack, ackpolicy.Nacked: nack, ackpolicy.Rejected: reject}

// place has what spans and measurements of a partition have in common, made once: it costs more
// than the rest of them. And it remembers the deliveries of records that are not done with.
type place struct {
	names   [operations]string
	options [operations][]trace.SpanStartOption
	counts  [operations]*series // of process if there is no error, and of settlements

	all *places
	mu  sync.Mutex
	of  map[int64]handed // by offset
}

// handed is the latest delivery of a record.
type handed struct {
	attempt int
	span    trace.SpanContext
	before  *handed // the delivery before: it may begin before the nack of that is reported
}

// mostSpans is approximately how many deliveries are remembered. Of more, any are forgotten: the
// next spans of their records are not linked.
const mostSpans = 1 << 16

// places are the partitions that deliveries came from.
type places struct {
	measures *measures
	newRoots bool
	spans    atomic.Int64 // that are remembered

	mu  sync.Mutex                           // held to change all
	all atomic.Pointer[map[partition]*place] // read for each delivery, and so replaced to change it
}

func (a *places) known() map[partition]*place {
	if all := a.all.Load(); all != nil {
		return *all
	}
	return nil
}

func (a *places) at(of partition) *place {
	if p := a.known()[of]; p != nil {
		return p
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.known()[of]
	if p == nil {
		p = a.newPlace(of)
		all := maps.Clone(a.known())
		if all == nil {
			all = map[partition]*place{}
		}
		all[of] = p
		a.all.Store(&all)
	}
	return p
}

func (a *places) newPlace(of partition) *place {
	p := &place{all: a, of: map[int64]handed{}}
	for o, name := range operationNames {
		kind, class := trace.SpanKindClient, semconv.MessagingOperationTypeSettle
		switch operation(o) {
		case process:
			kind, class = trace.SpanKindConsumer, semconv.MessagingOperationTypeProcess
		case letter:
			kind, class = trace.SpanKindProducer, semconv.MessagingOperationTypeSend
		}
		p.names[o] = name + " " + of.topic
		p.options[o] = []trace.SpanStartOption{trace.WithSpanKind(kind), trace.WithAttributes( // those that the conventions want samplers to see
			semconv.MessagingSystemKafka, class, semconv.MessagingOperationName(name),
			semconv.MessagingDestinationName(of.topic), semconv.MessagingDestinationPartitionID(strconv.Itoa(int(of.number))),
			semconv.MessagingConsumerGroupName(valid(of.group)),
		)}
	}
	if a.newRoots {
		p.options[process] = append(p.options[process], trace.WithNewRoot())
	}
	p.counts[process] = a.measures.at(seriesOf{group: of.group, topic: of.topic, operation: operationNames[process], class: processes})
	for status, o := range operationOf {
		p.counts[o] = a.measures.at(seriesOf{group: of.group, topic: of.topic, operation: operationNames[o], class: settles, status: status.String()})
	}
	return p
}

// release forgets a partition.
func (a *places) release(of partition) {
	a.mu.Lock()
	all := maps.Clone(a.known())
	p := all[of]
	delete(all, of)
	a.all.Store(&all)
	a.mu.Unlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a.spans.Add(-int64(len(p.of)))
	clear(p.of)
}

// begin remembers a delivery, and returns the one before.
func (p *place) begin(offset int64, h handed) (previous trace.SpanContext) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, known := p.of[offset]
	switch {
	case known && before.attempt < h.attempt:
		previous = before.span
		h.before = &handed{attempt: before.attempt, span: before.span}
	case known:
	case p.all.spans.Add(1) > mostSpans:
		for any := range p.of {
			delete(p.of, any)
			p.all.spans.Add(-1)
			break
		}
	}
	p.of[offset] = h
	return previous
}

// find returns a delivery of a record, or the latest one if it is not known, and forgets the
// record if it is done with.
func (p *place) find(offset int64, attempt int, done bool) (h handed, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h, ok = p.of[offset]; ok && done {
		delete(p.of, offset)
		p.all.spans.Add(-1)
	}
	if h.before != nil && h.before.attempt == attempt {
		h = *h.before
	}
	return h, ok
}

func linkTo(span trace.SpanContext, link []attribute.KeyValue) trace.Link {
	return trace.Link{SpanContext: span, Attributes: link}
}

// What a link is to.
var (
	toProducer = []attribute.KeyValue{linkKey.String("producer")}
	toPrevious = []attribute.KeyValue{linkKey.String("previous_attempt")}
)
