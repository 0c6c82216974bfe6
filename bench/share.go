package main

import (
	"context"
	"errors"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"
)

// franzShare is a share group (KIP-932) by franz-go: the handlers of a poll run at once, as many as the case says, and
// the next poll acknowledges its records.
func franzShare(ctx context.Context, j job, m *meter) error {
	if err := shareFromStart(j); err != nil {
		return err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(j.Brokers...), kgo.ShareGroup(j.Group), kgo.ConsumeTopics(j.Topic))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-m.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	records := make(chan *kgo.Record)
	defer close(records)
	handled := make(chan struct{})
	for range j.Concurrency * j.Partitions {
		go func() {
			for r := range records {
				m.handle(r.Value)
				handled <- struct{}{}
			}
		}()
	}
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil && ctx.Err() == nil {
			return err
		}
		if j.Concurrency == 1 {
			fetches.EachRecord(func(r *kgo.Record) { m.handle(r.Value) })
			continue
		}
		left := fetches.NumRecords()
		go fetches.EachRecord(func(r *kgo.Record) { records <- r })
		for range left {
			<-handled
		}
	}
	return nil
}

// shareFromStart has a share group begin at the start of its topics: that is a setting of the group.
func shareFromStart(j job) error {
	cfg := saramaConfig()
	cfg.Version = sarama.V2_3_0_0
	admin, err := sarama.NewClusterAdmin(j.Brokers, cfg)
	if err != nil {
		return err
	}
	const groups = sarama.ConfigResourceType(32)
	earliest := "earliest"
	err = admin.IncrementalAlterConfig(groups, j.Group, map[string]sarama.IncrementalAlterConfigsEntry{
		"share.auto.offset.reset": {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &earliest},
	}, false)
	return errors.Join(err, admin.Close())
}
