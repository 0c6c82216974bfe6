// Package memkafka is Kafka as far as a test of an application needs it: topics in memory, the
// positions of groups, and one broker that speaks the protocol over connections in memory.
//
// It is made for a bubble of testing/synctest, in which sarama's own consumers cannot run:
// sarama holds a mutex while it waits for a response, and whoever waits for that mutex keeps the
// bubble's time from advancing. So the broker responds to everything at once, and what a client
// waits for in Kafka does not go over a connection: [Link.ConsumerGroup] and [Link.Consumer]
// replace sarama's, which join groups and poll.
package memkafka
