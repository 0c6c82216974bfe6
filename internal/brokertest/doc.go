// Package brokertest gives tests, benchmarks and examples a Kafka broker and the few operations on it that they need.
//
// The broker is kfake, a Kafka in this process that speaks the real protocol on a real socket, unless KAFKA_BROKERS
// names a real one (`scripts/kafka.sh run -- go test ./...`). Tests share nothing but that broker: take names from
// [Topic] and [Group].
//
// # Where kfake differs from Apache Kafka
//
// What these lines say was seen with sarama's client; the tests of this package run on both.
//
//   - Groups form at once in both: scripts/kafka.sh sets group.initial.rebalance.delay.ms to 0, kfake has no such delay.
//   - The shortest session timeout of a classic group is 6 s in both. Both are set to one second here.
//   - kfake creates topics with 10 partitions, and none that are merely asked for. Here it is set to what Kafka's
//     images do: one partition, and created.
//   - OffsetFetch for a group that the broker has never heard of fails with GROUP_ID_NOT_FOUND. Kafka responds without
//     an error, that nothing is stored. [Committed] returns -1 for both.
//   - kfake stores a commit at once. Kafka 4's coordinator holds it back for some 5 ms, to write several together.
//   - The first use of a group on a fresh Kafka waits until its offsets topic exists, about half a second.
//   - [kfake.Cluster.Fault] and [kfake.Cluster.ControlKey] fail, count or hold back requests. Control functions and
//     Fault's When run on the cluster's own goroutine: one that blocks (without SleepControl) blocks the whole broker.
package brokertest
