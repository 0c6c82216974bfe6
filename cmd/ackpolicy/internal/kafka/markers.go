package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Marker is the end of a transaction in a partition.
type Marker struct {
	Topic            string
	Partition        int32
	ProducerID       int64
	Epoch            int16
	CoordinatorEpoch int32
}

// AbortTransaction writes the marker of an aborted transaction, as its coordinator would.
// sarama has no such request, so this is franz-go's.
func (c *Connection) AbortTransaction(ctx context.Context, m Marker) error {
	options, err := c.franz()
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return err
	}
	defer client.Close()
	topic := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
	topic.Topic, topic.Partitions = m.Topic, []int32{m.Partition}
	marker := kmsg.NewWriteTxnMarkersRequestMarker()
	marker.ProducerID, marker.ProducerEpoch, marker.CoordinatorEpoch = m.ProducerID, m.Epoch, m.CoordinatorEpoch
	marker.Topics = append(marker.Topics, topic)
	request := kmsg.NewPtrWriteTxnMarkersRequest()
	request.Markers = append(request.Markers, marker)
	response, err := request.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	for _, marker := range response.Markers {
		for _, topic := range marker.Topics {
			for _, p := range topic.Partitions {
				err = errors.Join(err, kerr.ErrorForCode(p.ErrorCode))
			}
		}
	}
	return err
}

// franz returns the connection's options for a client of franz-go.
func (c *Connection) franz() ([]kgo.Opt, error) {
	cfg, err := c.Config("")
	if err != nil {
		return nil, err
	}
	options := []kgo.Opt{kgo.SeedBrokers(c.Brokers...), kgo.ClientID(clientID), kgo.RetryTimeout(Patience)}
	if cfg.Net.TLS.Enable {
		options = append(options, kgo.DialTLSConfig(cfg.Net.TLS.Config))
	}
	user, password := cfg.Net.SASL.User, cfg.Net.SASL.Password
	switch c.SASL {
	case "plain":
		options = append(options, kgo.SASL(plain.Auth{User: user, Pass: password}.AsMechanism()))
	case "scram-sha-256":
		options = append(options, kgo.SASL(scram.Auth{User: user, Pass: password}.AsSha256Mechanism()))
	case "scram-sha-512":
		options = append(options, kgo.SASL(scram.Auth{User: user, Pass: password}.AsSha512Mechanism()))
	}
	return options, nil
}
