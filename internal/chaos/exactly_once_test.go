package chaos_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/chaos"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// TestExactlyOnce has the members copy a topic with transactions. With a cluster of its own (scripts/kafka.sh run --brokers 3)
// brokers are restarted, too.
func TestExactlyOnce(t *testing.T) {
	if testing.Short() || testkit.Race && os.Getenv("CI") != "" {
		t.Skip("kills processes for some 20 s; sarama's data race hides ours from the race detector here")
	}
	t.Parallel()
	broker := brokertest.New(t, kfake.NumBrokers(3))
	cluster, faults := clusterOf(broker)
	eachSeed(t, func(seed uint64, protocol string) {
		outputs := []string{chaos.ExactlyOnce}
		if *stock {
			outputs = append(outputs, chaos.AtLeastOnce)
		}
		for _, output := range outputs {
			spec := chaos.NewCopySpec(seed, protocol, output)
			spec.Cluster = faults
			t.Run(fmt.Sprintf("seed %d %s %s", seed, protocol, output), func(t *testing.T) {
				t.Parallel()
				one(t, spec, broker, cluster, *length)
			})
		}
	})
}

// clusterOf returns what can be done to the brokers.
func clusterOf(broker *brokertest.Broker) (*chaos.Cluster, []chaos.Fault) {
	if fake := broker.Kfake(); fake != nil {
		move := func() error {
			fake.RehashCoordinators()
			return nil
		}
		return &chaos.Cluster{Move: move}, []chaos.Fault{chaos.MoveCoordinators}
	}
	brokers := len(broker.Addrs())
	if os.Getenv("ACKPOLICY_KAFKA_STATE") == "" || brokers < 3 {
		return &chaos.Cluster{}, nil // other tests use it
	}
	var last atomic.Int64
	restart := func() error {
		n := int(last.Add(1))%brokers + 1
		out, err := exec.Command("../../scripts/kafka.sh", "restart-broker", strconv.Itoa(n)).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}
	return &chaos.Cluster{Restart: restart, Move: func() error { return brokertest.MoveCoordinators(broker.Addrs()) }},
		[]chaos.Fault{chaos.BrokerRestart, chaos.MoveCoordinators}
}
