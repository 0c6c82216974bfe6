package letters

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/clitest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

const (
	exitDone        = cli.Done
	exitFailed      = cli.Failed
	exitUsage       = cli.Usage
	exitUndelivered = int(errUndelivered)
	exitInterrupted = cli.Interrupted
)

// bed is an origin topic and its dead letter topic.
type bed struct {
	t           testing.TB
	broker      *brokertest.Broker
	origin, dlq string
}

func newBed(t testing.TB, partitions int32) *bed {
	t.Helper()
	return newBedOn(t, testkit.Shared, partitions)
}

func newBedOn(t testing.TB, broker *brokertest.Broker, partitions int32) *bed {
	t.Helper()
	b := &bed{t: t, broker: broker, origin: brokertest.Topic(t)}
	b.dlq = b.origin + ".dlq"
	for _, topic := range []string{b.origin, b.dlq} {
		testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, partitions))
	}
	return b
}

func (b *bed) group() string { return b.dlq + "-redrive" }

// sample is a letter's reason and so on, with what is left out filled in.
func (b *bed) sample(l ackpolicy.Letter) ackpolicy.Letter {
	if l.Topic == "" {
		l.Topic = b.origin
	}
	if l.Reason == nil {
		l.Reason = errors.New("cannot charge: timeout")
	}
	if l.Handler == "" {
		l.Handler = "charge"
	}
	if l.Group == "" {
		l.Group = "billing"
	}
	if l.RejectedAt.IsZero() {
		l.RejectedAt = time.Now()
	}
	if l.Timestamp.IsZero() {
		l.Timestamp = time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	}
	l.Attempts = max(1, l.Attempts)
	return l
}

// letter writes a letter as the library does, under its own profile.
func (b *bed) letter(partition int32, key, value string, l ackpolicy.Letter) {
	b.t.Helper()
	l.Partition = partition
	headers := append(ackpolicy.HeadersAckpolicy(b.sample(l)), header(ackpolicy.HeaderRejections, "1"))
	b.put(b.dlq, partition, brokertest.Record{Key: []byte(key), Value: []byte(value), Headers: headers})
}

// letters writes n letters with their numbers as values.
func (b *bed) letters(partition int32, n int) {
	b.t.Helper()
	records := make([]brokertest.Record, n)
	for i := range records {
		headers := append(ackpolicy.HeadersAckpolicy(b.sample(ackpolicy.Letter{Partition: partition, Offset: int64(i)})), header(ackpolicy.HeaderRejections, "1"))
		records[i] = brokertest.Record{Key: []byte("k"), Value: fmt.Append(nil, i), Headers: headers}
	}
	b.put(b.dlq, partition, records...)
}

func (b *bed) put(topic string, partition int32, records ...brokertest.Record) {
	b.t.Helper()
	_, err := brokertest.Produce(b.broker.Addrs(), topic, partition, records...)
	testkit.Check(b.t, err)
}

func header(key, value string) sarama.RecordHeader {
	return sarama.RecordHeader{Key: []byte(key), Value: []byte(value)}
}

type result = clitest.Result

// run runs the command.
func (b *bed) run(args ...string) result {
	b.t.Helper()
	return b.runIn(b.t.Context(), args...)
}

// args are those of a command under letters, list if none is named.
func (b *bed) args(args []string) []string {
	command := []string{"letters", cmdList}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command[1], args = args[0], args[1:]
	}
	if command[1] == cmdSend {
		command = append(command, "--yes")
	}
	if !slices.Contains(args, "--brokers") {
		command = append(command, "--brokers", strings.Join(b.broker.Addrs(), ","))
	}
	return append(append(command, "--topic", b.dlq), args...)
}

func (b *bed) runIn(ctx context.Context, args ...string) result {
	return execute(ctx, strings.NewReader(""), b.args(args)...)
}

func execute(ctx context.Context, in io.Reader, args ...string) result {
	return clitest.Run(ctx, nil, in, args, Command)
}

func noEnv(string) string { return "" }

// want runs the command, and wants the exit code and the texts.
func (b *bed) want(code int, texts []string, args ...string) result {
	b.t.Helper()
	r := b.run(args...)
	r.Want(b.t, code, texts...)
	return r
}

// read reads all of a partition that a consumer with this isolation sees.
func (b *bed) read(topic string, partition int32, isolation sarama.IsolationLevel) []*sarama.ConsumerMessage {
	b.t.Helper()
	cfg := sarama.NewConfig()
	cfg.Consumer.IsolationLevel = isolation
	client, err := sarama.NewClient(b.broker.Addrs(), cfg)
	testkit.Check(b.t, err)
	defer client.Close()
	end, err := client.GetOffset(topic, partition, sarama.OffsetNewest)
	testkit.Check(b.t, err)
	if topic == b.dlq {
		end-- // no transactions there: its last record is the end
	} else {
		// What an open transaction holds back comes before this one, or never.
		b.put(topic, partition, brokertest.Values("the end")...)
	}
	consumer, err := sarama.NewConsumerFromClient(client)
	testkit.Check(b.t, err)
	pc, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
	testkit.Check(b.t, err)
	defer pc.Close()
	var all []*sarama.ConsumerMessage
	for timeout := time.After(testkit.Patience); ; {
		select {
		case m := <-pc.Messages():
			if m.Offset >= end && topic != b.dlq {
				return all
			}
			if string(m.Value) != "the end" {
				all = append(all, m)
			}
			if m.Offset == end {
				return all
			}
		case <-timeout:
			b.t.Fatalf("%s/%d: the end does not come", topic, partition)
		}
	}
}

// values reads the values of the origin's partition that are committed.
func (b *bed) values(partition int32) []string {
	b.t.Helper()
	return values(b.read(b.origin, partition, sarama.ReadCommitted))
}

func values(records []*sarama.ConsumerMessage) []string {
	all := make([]string, len(records))
	for i, m := range records {
		all[i] = string(m.Value)
	}
	return all
}

// wantStored asserts the offset that the group stores; -1: none.
func (b *bed) wantStored(partition int32, want int64) {
	b.t.Helper()
	var got int64
	var err error
	// Kafka reports the end of a transaction before its offsets can be read.
	for deadline := time.Now().Add(testkit.Patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got, err = brokertest.Committed(b.broker.Addrs(), b.group(), b.dlq, partition); err == nil && got == want {
			return
		}
	}
	b.t.Errorf("stored offset of partition %d: got %d, %v, want %d", partition, got, err, want)
}
