package ackpolicy

import (
	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
)

// interceptors are the application's Consumer.Interceptors. sarama would call them once
// per record and change the record in memory: a letter would contain the changes, and a
// record that was read again would not. Here they get a copy for each delivery.
type interceptors struct {
	all    []sarama.ConsumerInterceptor
	broken outage.Outage
}

// intercept calls the interceptors with a record. One that panics is skipped, as by sarama;
// one that calls runtime.Goexit costs the attempt.
func (i *interceptors) intercept(record *sarama.ConsumerMessage, logger watermill.LoggerAdapter) {
	topic, partition, offset := record.Topic, record.Partition, record.Offset
	failed := func(err error) {
		if report, due := i.broken.Failed(); due {
			logger.Error("A Consumer.Interceptor failed", err, report.AddTo(watermill.LogFields{
				"topic": topic, "kafka_partition": partition, "kafka_partition_offset": offset,
			}))
		}
	}
	for _, interceptor := range i.all {
		if err := guard("the interceptor", func() { interceptor.OnConsume(record) }, failed); err != nil {
			failed(err)
		}
	}
}
