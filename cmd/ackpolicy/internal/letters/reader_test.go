package letters

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// transact writes letters to the dead letter topic in transactions of n each, and ends
// each as ends says; the last one may stay open.
func (b *bed) transact(id string, n int, ends ...string) (finish func()) {
	b.t.Helper()
	cfg, err := (&kafka.Connection{}).Config(id)
	testkit.Check(b.t, err)
	cfg.Producer.Transaction.Timeout = time.Minute
	producer, err := sarama.NewSyncProducer(b.broker.Addrs(), cfg)
	testkit.Check(b.t, err)
	for i, end := range ends {
		testkit.Check(b.t, producer.BeginTxn())
		for j := range n {
			headers := append(ackpolicy.HeadersAckpolicy(b.sample(ackpolicy.Letter{})), header(ackpolicy.HeaderRejections, "1"))
			_, _, err := producer.SendMessage(&sarama.ProducerMessage{
				Topic: b.dlq, Value: sarama.StringEncoder(fmt.Sprintf("%s %d.%d", id, i, j)), Headers: headers,
			})
			testkit.Check(b.t, err)
		}
		switch end {
		case "commit":
			testkit.Check(b.t, producer.CommitTxn())
		case "abort":
			testkit.Check(b.t, producer.AbortTxn())
		}
	}
	return func() {
		if producer.TxnStatus()&sarama.ProducerTxnFlagInTransaction != 0 {
			testkit.Check(b.t, producer.CommitTxn())
		}
		testkit.Check(b.t, producer.Close())
	}
}

// Of a dead letter topic that is written in transactions, letters count once they are
// committed. What transactions leave behind in the log is done with them.
func TestTransactionalLetters(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	one, two := b.origin+" one", b.origin+" two"
	b.transact(one, 2, "commit", "abort", "abort", "commit", "abort")()
	b.letter(0, "k", "plain", ackpolicy.Letter{})
	b.transact(two, 1, "abort", "commit")()
	const end = 13 + 7 // records, and the marks of transactions, which Kafka may write a little later
	testkit.Eventually(t, "the last mark", func() bool {
		at, err := brokertest.EndOffset(b.broker.Addrs(), b.dlq, 0)
		return err == nil && at == end
	})
	b.want(exitDone, []string{"6 letters,"})
	b.want(exitDone, []string{"Sent 6 letters."}, "send")
	b.wantValues(0, one+" 0.0", one+" 0.1", one+" 3.0", one+" 3.1", "plain", two+" 1.0")
	b.wantStored(0, end) // the marks of the transactions at the end are nothing to wait for
	b.want(exitDone, []string{"is open:"}, "send")
}

// A letter behind an open transaction is not there yet.
func TestOpenTransaction(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letter(0, "k", "before", ackpolicy.Letter{})
	finish := b.transact(b.origin, 1, "open")
	b.letter(0, "k", "behind", ackpolicy.Letter{})
	b.want(exitDone, []string{"Sent 1 letter."}, "send")
	b.wantValues(0, "before")
	b.wantStored(0, 1)
	finish()
	b.want(exitDone, []string{"Sent 2 letters."}, "send")
	b.wantValues(0, "before", b.origin+" 0.0", "behind")
}

// Gaps that compaction leaves are nothing to wait for.
func TestGaps(t *testing.T) {
	t.Parallel()
	m := &marks{floor: 3}
	for _, s := range []span{{3, 6}, {9, 11}, {6, 9}} { // letters at 5, 10 and 8, and nothing before each
		m.add(s)
	}
	if m.floor != 11 || len(m.spans) > 0 {
		t.Errorf("%+v", m)
	}
}

// Where compaction took the last letters there is nothing to wait for.
func TestNothingAtTheEnd(t *testing.T) {
	t.Parallel()
	b := newBedOn(t, brokertest.NewFake(t), 1)
	b.letters(0, 5)
	b.want(exitDone, []string{"Sent 2 letters."}, "send", "--at", "0:0-1")
	b.broker.Kfake().ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		b.broker.Kfake().KeepControl()
		asked := request.(*kmsg.FetchRequest).Topics[0]
		if asked.Partitions[0].FetchOffset < 2 {
			return nil, nil, false
		}
		partition := kmsg.NewFetchResponseTopicPartition()
		partition.HighWatermark, partition.LastStableOffset, partition.RecordBatches = 5, 5, []byte{}
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.Partitions = asked.Topic, append(topic.Partitions, partition)
		response := request.ResponseKind().(*kmsg.FetchResponse)
		response.Topics = append(response.Topics, topic)
		return response, nil, true
	})
	began := time.Now()
	b.want(exitDone, []string{"No letter in " + b.dlq + " is open: all were sent or skipped"}, "send")
	if took := time.Since(began); took > kafka.Patience/2 {
		t.Errorf("it took %v", took)
	}
	b.wantStored(0, 2)
}

// Letters larger than a fetch, and more of them than one holds.
func TestLargeTopic(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	value := make([]byte, 900_000)
	for i := range 8 {
		b.letter(0, "k", string(value), ackpolicy.Letter{Offset: int64(i)})
	}
	b.letters(0, 5000)
	b.want(exitDone, []string{"Sent 5008 letters."}, "send", "--batch", "1000")
	if got := b.read(b.origin, 0, sarama.ReadCommitted); len(got) != 5008 || len(got[7].Value) != len(value) || string(got[5007].Value) != "4999" {
		t.Errorf("%d letters came back", len(got))
	}
}

// Where the broker stamps letters, the header still has the record's own time.
func TestLogAppendTime(t *testing.T) {
	t.Parallel()
	b := &bed{t: t, broker: testkit.Shared, origin: brokertest.Topic(t)}
	b.dlq = b.origin + ".dlq"
	testkit.Check(t, brokertest.CreateTopic(b.broker.Addrs(), b.origin, 1))
	testkit.Check(t, brokertest.CreateTopic(b.broker.Addrs(), b.dlq, 1, "message.timestamp.type=LogAppendTime"))
	stamped := time.Now().Add(-2 * time.Hour).Truncate(time.Millisecond)
	headers := ackpolicy.HeadersAckpolicy(b.sample(ackpolicy.Letter{Timestamp: stamped}))
	b.put(b.dlq, 0, brokertest.Record{Value: []byte("x"), Headers: headers, Timestamp: stamped})
	r := b.want(exitDone, nil, "list", "--json")
	var letter jsonLetter
	testkit.Check(t, json.Unmarshal([]byte(r.Out), &letter))
	if age := time.Since(*letter.Timestamp); b.broker.Real() && (age > time.Minute || age < -time.Minute) { // kfake stamps nothing
		t.Errorf("the letter is %v old", age)
	}
	b.want(exitDone, nil, "send", "--timestamp", "original")
	if got := b.read(b.origin, 0, sarama.ReadCommitted); !got[0].Timestamp.Equal(stamped) {
		t.Errorf("it came back as of %v, not %v", got[0].Timestamp, stamped)
	}
}
