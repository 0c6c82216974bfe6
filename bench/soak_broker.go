package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

type soakLoad struct{ rate, keys, size int }

// produce sends keyed records at a rate. A key has its partition.
func (s *soak) produce(ctx context.Context, load soakLoad) error {
	cl, err := newProducer(s.spec.Brokers)
	if err != nil {
		return err
	}
	defer cl.Close()
	random := rand.New(rand.NewPCG(s.spec.Seed, 2))
	var once sync.Once
	for sent := 0; ctx.Err() == nil; sent++ {
		if wait := time.Until(s.began.Add(time.Duration(sent) * time.Second / time.Duration(load.rate))); wait > 0 {
			time.Sleep(wait)
		}
		key := random.IntN(load.keys)
		topic, partition := random.IntN(2), key%s.spec.Partitions
		cl.Produce(context.Background(), &kgo.Record{
			Topic: s.spec.Topics[topic], Partition: int32(partition), Key: strconv.AppendInt([]byte("key-"), int64(key), 10),
			Value: stamp{key: uint32(key)}.encode(load.size),
		}, func(r *kgo.Record, err error) {
			if err != nil {
				once.Do(func() { s.abort(fmt.Errorf("produce: %w", err)) })
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			end := &s.ends[topic*s.spec.Partitions+partition]
			*end = max(*end, r.Offset+1)
		})
	}
	return cl.Flush(context.Background())
}

// readLetters reports each dead letter to the judge.
func (s *soak) readLetters(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.spec.Brokers...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeTopics(s.spec.Topics[0]+".dlq", s.spec.Topics[1]+".dlq"))
	if err != nil {
		return err
	}
	defer cl.Close()
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		s.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) {
			id := soakRecord{partition: -1}
			topic := 0
			for _, h := range r.Headers {
				switch n, _ := strconv.ParseInt(string(h.Value), 10, 64); h.Key {
				case ackpolicy.HeaderTopic:
					topic = slices.Index(s.spec.Topics[:], string(h.Value))
				case ackpolicy.HeaderPartition:
					id.partition = int32(n)
				case ackpolicy.HeaderOffset:
					id.offset = n
				}
			}
			id.partition += int32(topic * s.spec.Partitions)
			s.judge.letter(id)
			s.letters++
		})
		s.mu.Unlock()
	}
	return nil
}

// lettersStored is how many letters there are.
func (s *soak) lettersStored() (n int64, err error) {
	client, err := sarama.NewClient(s.spec.Brokers, sarama.NewConfig())
	if err != nil {
		return 0, err
	}
	defer client.Close()
	for i := range s.ends {
		end, err := client.GetOffset(s.spec.Topics[i/s.spec.Partitions]+".dlq", int32(i%s.spec.Partitions), sarama.OffsetNewest)
		if err != nil {
			return 0, err
		}
		n += end
	}
	return n, nil
}

// stored returns the group's offsets.
func (s *soak) stored() []int64 {
	admin, err := sarama.NewClusterAdmin(s.spec.Brokers, sarama.NewConfig())
	if err != nil {
		return nil
	}
	defer admin.Close()
	all, err := admin.ListConsumerGroupOffsets(s.spec.Group, nil)
	if err != nil {
		return nil
	}
	offsets := make([]int64, len(s.ends))
	for i := range offsets {
		if b := all.GetBlock(s.spec.Topics[i/s.spec.Partitions], int32(i%s.spec.Partitions)); b != nil {
			offsets[i] = max(0, b.Offset)
		}
	}
	return offsets
}
