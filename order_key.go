package ackpolicy

import (
	"sync"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
)

// orderKey calls SubscriberConfig.Key, in a goroutine of its own: runtime.Goexit would end that
// of the partition. If Key fails, the record's own key is used.
func (s *subscription) orderKey(r *sarama.ConsumerMessage) []byte {
	key := r.Key
	failed := func(err error) {
		if report, due := s.brokenKey.Failed(); due {
			s.logger.Error("SubscriberConfig.Key failed: the record is ordered by its own key", err,
				report.AddTo(watermill.LogFields{"kafka_partition": r.Partition, "kafka_partition_offset": r.Offset}))
		}
	}
	var call sync.WaitGroup
	call.Go(func() {
		own := key
		if broken := guard("SubscriberConfig.Key", func() { own = s.sub.config.Key(r) }, failed); broken != nil {
			failed(broken)
			return
		}
		key = own
	})
	call.Wait()
	return key
}
