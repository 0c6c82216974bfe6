package memkafka

import (
	"encoding/binary"
	"io"
	"slices"
	"sync"

	"github.com/IBM/sarama"
)

// accept serves connections until the cluster is closed.
func (c *Cluster) accept() {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		select {
		case conn := <-c.conns:
			all.Go(func() { c.serve(conn) })
		case <-c.closed:
			return
		}
	}
}

// serve responds to the requests of a connection, one after the other.
func (c *Cluster) serve(conn connection) {
	done := make(chan struct{})
	var closes sync.WaitGroup
	closes.Go(func() {
		select {
		case <-done:
		case <-c.closed:
		}
		_ = conn.Conn.Close()
	})
	defer closes.Wait()
	defer close(done)
	for {
		head := make([]byte, 4)
		if _, err := io.ReadFull(conn.Conn, head); err != nil {
			return
		}
		request := make([]byte, binary.BigEndian.Uint32(head))
		if _, err := io.ReadFull(conn.Conn, request); err != nil {
			return
		}
		response, ok := c.respond(request)
		if !ok {
			return
		}
		if _, err := conn.Conn.Write(response); err != nil {
			return
		}
	}
}

// kind is a kind of request. There is one version of each, before those with tagged fields.
type kind struct {
	key, version int16
	respond      func(c *Cluster, r *reader, w *writer)
}

const keyAPIVersions = 18

var kinds = []kind{
	{0, 3, (*Cluster).produce},
	{1, 4, (*Cluster).fetch},
	{2, 2, (*Cluster).listOffsets},
	{3, 4, (*Cluster).metadata},
	{8, 7, (*Cluster).commit},
	{9, 5, (*Cluster).fetchOffsets},
	{10, 1, (*Cluster).findCoordinator},
	{19, 2, (*Cluster).createTopics},
	{22, 1, (*Cluster).initProducer},
	{32, 1, (*Cluster).describeConfigs},
}

// respond returns the response to a request. ok is false, and the connection ends, if it is not one of kinds.
func (c *Cluster) respond(request []byte) (response []byte, ok bool) {
	defer func() {
		if err := recover(); err != nil && err != errShort {
			panic(err)
		}
	}()
	r, w := &reader{request}, &writer{}
	key, version := r.i16(), r.i16()
	w.i32(0)
	w.i32(r.i32())
	r.text() // the client's id
	if key == keyAPIVersions {
		versions(w)
	} else {
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.key == key && k.version == version })
		if i < 0 {
			return nil, false
		}
		kinds[i].respond(c, r, w)
	}
	binary.BigEndian.PutUint32(w.b, uint32(len(w.b)-4))
	return w.b, true
}

// versions is the response to versions 3 and 4 of the request, which have tagged fields.
func versions(w *writer) {
	w.i16(0)
	w.i8(int8(len(kinds) + 2))
	for _, k := range append(slices.Clone(kinds), kind{key: keyAPIVersions, version: 4}) {
		w.i16(k.key)
		w.i16(0)
		w.i16(k.version)
		w.i8(0)
	}
	w.i32(0)
	w.i8(0)
}

const (
	brokerID     = 1
	noError      = int16(0)
	clusterName  = "memory"
	host         = "kafka"
	port         = 9092
	outOfRange   = int16(sarama.ErrOffsetOutOfRange)
	unknownTopic = int16(sarama.ErrUnknownTopicOrPartition)
)

func (c *Cluster) metadata(r *reader, w *writer) {
	var names []string
	count := r.i32()
	for range count {
		names = append(names, r.text())
	}
	create := r.i8() != 0
	if count < 0 {
		names = c.Topics()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w.i32(0)
	w.i32(1)
	w.i32(brokerID)
	w.text(host)
	w.i32(port)
	w.null()
	w.text(clusterName)
	w.i32(brokerID)
	w.i32(int32(len(names)))
	for _, name := range names {
		t := c.topics[name]
		if t == nil && create {
			t = c.grow(name, 1)
		}
		if t == nil {
			w.i16(unknownTopic)
			t = &topic{}
		} else {
			w.i16(noError)
		}
		w.text(name)
		w.i8(0)
		w.i32(int32(len(t.partitions)))
		for p := range t.partitions {
			w.i16(noError)
			w.i32(int32(p))
			w.i32(brokerID)
			for range 2 { // the replicas, and those in sync
				w.i32(1)
				w.i32(brokerID)
			}
		}
	}
}

func (c *Cluster) findCoordinator(_ *reader, w *writer) {
	w.i32(0)
	w.i16(noError)
	w.null()
	w.i32(brokerID)
	w.text(host)
	w.i32(port)
}

// eachPartition reads an array of topics with partitions and writes the array of the response.
// one reads what the request has behind a partition's number, and writes what the response has.
func (c *Cluster) eachPartition(r *reader, w *writer, one func(at place)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	topics, end := 0, w.array()
	r.each(func() {
		topics++
		at := place{topic: r.text()}
		w.text(at.topic)
		partitions, end := 0, w.array()
		r.each(func() {
			partitions++
			at.partition = r.i32()
			w.i32(at.partition)
			one(at)
		})
		end(partitions)
	})
	end(topics)
}

func (c *Cluster) listOffsets(r *reader, w *writer) {
	r.i32()
	r.i8()
	w.i32(0)
	c.eachPartition(r, w, func(at place) {
		log, when, err, offset := c.log(at.topic, at.partition), r.i64(), noError, int64(0)
		switch {
		case log == nil:
			err, offset = unknownTopic, -1
		case when == sarama.OffsetNewest:
			offset = int64(len(log.records))
		}
		w.i16(err)
		w.i64(-1)
		w.i64(offset)
	})
}

// fetch never waits: only single records are read over connections.
func (c *Cluster) fetch(r *reader, w *writer) {
	r.take(4 + 4 + 4 + 4 + 1)
	w.i32(0)
	c.eachPartition(r, w, func(at place) {
		from, _ := r.i64(), r.i32()
		log, err, end := c.log(at.topic, at.partition), noError, int64(0)
		var batch []byte
		if log == nil {
			err = unknownTopic
		} else if end = int64(len(log.records)); from < 0 || from > end {
			err = outOfRange
		} else if from < end {
			batch = encodeBatch(log.records[from])
		}
		w.i16(err)
		w.i64(end)
		w.i64(end)
		w.i32(0)
		w.bytes(batch)
	})
}

func (c *Cluster) produce(r *reader, w *writer) {
	r.text()
	r.take(2 + 4)
	c.eachPartition(r, w, func(at place) {
		records, ok := decodeBatches(r.bytes())
		err, first := noError, int64(-1)
		switch {
		case !ok:
			err = int16(sarama.ErrUnsupportedCompressionType)
		case c.log(at.topic, at.partition) == nil:
			err = unknownTopic
		default:
			for i, record := range records {
				record.Topic, record.Partition = at.topic, at.partition
				if offset := c.append(record); i == 0 {
					first = offset
				}
			}
		}
		w.i16(err)
		w.i64(first)
		w.i64(-1)
	})
	w.i32(0)
}

func (c *Cluster) initProducer(_ *reader, w *writer) {
	c.mu.Lock()
	c.members++
	id := c.members
	c.mu.Unlock()
	w.i32(0)
	w.i16(noError)
	w.i64(int64(id))
	w.i16(0)
}

func (c *Cluster) createTopics(r *reader, w *writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.i32(0)
	topics, end := 0, w.array()
	r.each(func() {
		topics++
		name, partitions := r.text(), r.i32()
		r.i16()
		r.each(func() { r.i32(); r.each(func() { r.i32() }) })
		r.each(func() { r.text(); r.text() })
		w.text(name)
		if c.topics[name] != nil {
			w.i16(int16(sarama.ErrTopicAlreadyExists))
		} else {
			c.grow(name, max(1, int(partitions)))
			w.i16(noError)
		}
		w.null()
	})
	end(topics)
}

// settings are those of every topic. With this limit, no letter is compressed.
var settings = [][2]string{{"max.message.bytes", "104857600"}, {"message.timestamp.type", "CreateTime"}}

func (c *Cluster) describeConfigs(r *reader, w *writer) {
	w.i32(0)
	resources, end := 0, w.array()
	r.each(func() {
		resources++
		kind, name := r.i8(), r.text()
		var names []string
		count := r.i32()
		for range count {
			names = append(names, r.text())
		}
		w.i16(noError)
		w.null()
		w.i8(kind)
		w.text(name)
		entries, end := 0, w.array()
		for _, s := range settings {
			if count < 0 || slices.Contains(names, s[0]) {
				entries++
				w.text(s[0])
				w.text(s[1])
				w.i8(0)
				w.i8(5) // the default
				w.i8(0)
				w.i32(0)
			}
		}
		end(entries)
	})
	end(resources)
}

func (c *Cluster) commit(r *reader, w *writer) {
	name, generation, member := r.text(), r.i32(), r.text()
	r.text()
	w.i32(0)
	c.mu.Lock()
	g := c.group(name)
	err := g.accepts(member, generation)
	c.mu.Unlock()
	c.eachPartition(r, w, func(at place) {
		offset := r.i64()
		r.i32()
		if text := r.text(); err == noError {
			g.positions[at] = position{offset, text}
			g.tell()
		}
		w.i16(err)
	})
}

func (c *Cluster) fetchOffsets(r *reader, w *writer) {
	name := r.text()
	w.i32(0)
	c.mu.Lock()
	g := c.group(name)
	c.mu.Unlock()
	c.eachPartition(r, w, func(at place) {
		p := g.position(at)
		w.i64(p.offset)
		w.i32(-1)
		w.text(p.metadata)
		w.i16(noError)
	})
	w.i16(noError)
}
