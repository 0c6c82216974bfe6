package transactions

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/clitest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// want runs the command, and wants the exit code and the texts.
func want(t *testing.T, code int, texts []string, args ...string) string {
	t.Helper()
	r := clitest.Run(t.Context(), testkit.Shared.Addrs(), strings.NewReader(""), append([]string{"transactions"}, args...), Command)
	r.Want(t, code, texts...)
	return r.Out + r.Err
}

func decode(t *testing.T, text string) []Transaction {
	t.Helper()
	var found struct{ Transactions []Transaction }
	testkit.Check(t, json.Unmarshal([]byte(text), &found))
	return found.Transactions
}

// An open transaction is found by the beginning of its id, and by the topic that it writes to, and it is not aborted.
func TestOpen(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 2)
	group := t.Name() // what the ids of BeginTransaction begin with
	producer := testkit.BeginTransaction(t, topic, 1)
	for _, args := range [][]string{{"--group", group}, {"--prefix", group + "-gr"}, {"--topic", topic}, {"--topic", topic, "--group", group}} {
		found := decode(t, want(t, cli.Done, nil, append(args, "--json")...))
		if len(found) != 1 || found[0].State != "Ongoing" || !strings.HasPrefix(found[0].ID, group+"-") || found[0].TimeoutMS != 60_000 ||
			found[0].Since == nil || len(found[0].Partitions) != 1 || found[0].Partitions[0] != (Place{Topic: topic, Partition: 0}) {
			t.Errorf("%q: %+v", args, found)
		}
	}
	want(t, cli.Done, []string{"Ongoing", "1m0s", topic + ":0", "No transaction hangs"}, "--topic", topic, "--abort")
	testkit.Check(t, producer.CommitTxn())
	testkit.Eventually(t, "its end", func() bool {
		return strings.Contains(want(t, cli.Done, nil, "--group", group, "--topic", topic), "No transaction is open.")
	})
	want(t, cli.Done, []string{group + "-"}, "--group", group, "--all")
	testkit.Check(t, producer.Close())
}

func TestUsage(t *testing.T) {
	t.Parallel()
	want(t, cli.Usage, []string{"set --group, --prefix or --topic"})
	want(t, cli.Failed, []string{"no-such-topic: the topic does not exist"}, "--topic", "no-such-topic")
}

// A transaction that a partition has and no coordinator knows is hanging: it is shown, and aborted on demand.
func TestHanging(t *testing.T) {
	if !testkit.Shared.Real() {
		t.Skip("kfake takes no record of a transaction that its coordinator does not know")
	}
	t.Parallel()
	topic := testkit.NewTopic(t, 2)
	hang(t, topic, 1)
	found := decode(t, want(t, cli.Done, nil, "--topic", topic, "--json"))
	if len(found) != 1 || found[0].State != Hanging || found[0].ID != "" || len(found[0].Partitions) != 1 || found[0].Partitions[0].Partition != 1 || *found[0].Partitions[0].Start != 0 {
		t.Fatalf("%+v", found)
	}
	want(t, cli.Failed, []string{"there is no terminal to ask at", "nothing was aborted"}, "--topic", topic, "--abort")
	want(t, cli.Done, []string{"Hanging", topic + ":1", "Aborted: 1 transaction."}, "--topic", topic, "--abort", "--yes")
	want(t, cli.Done, []string{"No transaction is open.", "nothing is to be aborted"}, "--topic", topic, "--abort", "--yes")
	records := 0
	testkit.Check(t, brokertest.Read(testkit.Shared.Addrs(), topic, 1, testkit.Patience, func(*sarama.ConsumerMessage) error {
		records++
		return nil
	}))
	if records != 0 {
		t.Errorf("%d records of the aborted transaction are visible", records)
	}
}

// hang writes a record of a transaction to a partition that the transaction's coordinator is not told of, as it happens
// when a late request reaches a broker before 4.0.
func hang(t *testing.T, topic string, partition int32) {
	t.Helper()
	testkit.UncheckedTransactions(t)
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	client, err := sarama.NewClient(testkit.Shared.Addrs(), cfg)
	testkit.Check(t, err)
	defer client.Close()
	id := brokertest.Group(t)
	var producer *sarama.InitProducerIDResponse
	testkit.Eventually(t, "a producer id", func() bool { // until the coordinator has loaded
		_ = client.RefreshTransactionCoordinator(id)
		coordinator, err := client.TransactionCoordinator(id)
		if err == nil {
			producer, err = coordinator.InitProducerID(&sarama.InitProducerIDRequest{
				Version: 4, TransactionalID: &id, TransactionTimeout: time.Minute, ProducerID: -1, ProducerEpoch: -1,
			})
		}
		return err == nil && producer.Err == sarama.ErrNoError
	})
	leader, err := client.Leader(topic, partition)
	testkit.Check(t, err)
	testkit.Eventually(t, "the record", func() bool { // until the setting has arrived
		request := &sarama.ProduceRequest{Version: 7, TransactionalID: &id, RequiredAcks: sarama.WaitForAll, Timeout: 10_000}
		now := time.Now()
		request.AddBatch(topic, partition, &sarama.RecordBatch{
			Version: 2, IsTransactional: true, ProducerID: producer.ProducerID, ProducerEpoch: producer.ProducerEpoch,
			FirstTimestamp: now, MaxTimestamp: now, Records: []*sarama.Record{{Value: []byte("hanging")}},
		})
		response, err := leader.Produce(request)
		testkit.Check(t, err)
		return response.GetBlock(topic, partition).Err == sarama.ErrNoError
	})
}
