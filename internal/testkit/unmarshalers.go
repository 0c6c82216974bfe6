package testkit

import (
	"errors"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Refusing cannot decode the value "0" while the condition holds.
type Refusing struct{ While func() bool }

// Unmarshal implements kafka.Unmarshaler.
func (r Refusing) Unmarshal(record *sarama.ConsumerMessage) (*message.Message, error) {
	if string(record.Value) == "0" && r.While() {
		return nil, errors.New("no such schema")
	}
	return kafka.DefaultMarshaler{}.Unmarshal(record)
}

// BadValues cannot decode a record with the value "bad".
type BadValues struct{ kafka.DefaultMarshaler }

// Unmarshal implements kafka.Unmarshaler.
func (u BadValues) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) {
	if string(r.Value) == "bad" {
		return nil, ErrPoison
	}
	return u.DefaultMarshaler.Unmarshal(r)
}
