package ackpolicy

import (
	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
)

// interceptors are the application's Consumer.Interceptors. sarama would call them once a
// record, on the one in memory, so that a letter had what they made of it, and a record
// that was read again had not. Here they see a copy for each delivery.
type interceptors struct {
	all      []sarama.ConsumerInterceptor
	panicked outage.Outage
}

// intercept lets them change a record. One that panics is passed over, as sarama does.
func (i *interceptors) intercept(record *sarama.ConsumerMessage, logger watermill.LoggerAdapter) {
	topic, partition, offset := record.Topic, record.Partition, record.Offset
	for _, interceptor := range i.all {
		err := call(interceptor, record)
		if err == nil {
			continue
		}
		fields := watermill.LogFields{"topic": topic, "kafka_partition": partition, "kafka_partition_offset": offset}
		if report, ok := i.panicked.Failed(); ok {
			logger.Error("A Consumer.Interceptor panicked, its record is delivered as it left it", err, report.AddTo(fields))
		}
	}
}

func call(interceptor sarama.ConsumerInterceptor, record *sarama.ConsumerMessage) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = panicError(r)
		}
	}()
	interceptor.OnConsume(record)
	return nil
}
