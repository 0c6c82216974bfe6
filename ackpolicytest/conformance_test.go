package ackpolicytest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

func valuesOf(l *ackpolicytest.Letters) func() ([][]byte, error) {
	return func() (values [][]byte, err error) {
		for _, letter := range l.All() {
			values = append(values, letter.Record.Value)
		}
		return values, nil
	}
}

func TestLettersConform(t *testing.T) {
	ackpolicytest.TestDeadLetter(t, func(*testing.T) ackpolicytest.Destination {
		letters := &ackpolicytest.Letters{}
		return ackpolicytest.Destination{
			DeadLetter: letters, Stored: valuesOf(letters),
			Break: func(broken bool) {
				letters.Fail(nil)
				if broken {
					letters.Fail(errBoom)
				}
			},
		}
	})
}

// published is a Publisher that keeps what it is given, but for what is too large.
type published struct {
	mu     sync.Mutex
	broken bool
	values [][]byte
}

func (p *published) Publish(_ string, messages ...*message.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, msg := range messages {
		switch {
		case p.broken:
			return errBoom
		case len(msg.Payload) > 1<<20:
			return sarama.ErrMessageSizeTooLarge
		}
		p.values = append(p.values, msg.Payload)
	}
	return nil
}

func (p *published) Close() error { return nil }

func TestDeadLetterPublisherConforms(t *testing.T) {
	ackpolicytest.TestDeadLetter(t, func(*testing.T) ackpolicytest.Destination {
		p := &published{}
		return ackpolicytest.Destination{
			DeadLetter: ackpolicy.DeadLetterPublisher{Publisher: p},
			Stored:     func() ([][]byte, error) { return p.values, nil },
			Break:      func(broken bool) { p.broken = broken },
		}
	})
}

var decodable = &sarama.ConsumerMessage{
	Key: []byte("key"), Value: []byte("value"), Headers: []*sarama.RecordHeader{{Key: []byte("header"), Value: []byte("value")}},
}

func TestUnmarshalersConform(t *testing.T) {
	for name, u := range map[string]kafka.Unmarshaler{
		"DefaultMarshaler":             kafka.DefaultMarshaler{},
		"NewWithPartitioningMarshaler": kafka.NewWithPartitioningMarshaler(func(string, *message.Message) (string, error) { return "key", nil }),
	} {
		t.Run(name, func(t *testing.T) { ackpolicytest.TestUnmarshaler(t, u, decodable) })
	}
}

type before = func(stored *ackpolicytest.Letters, r *sarama.ConsumerMessage) (done bool, err error)

// deadLetter is a DeadLetter that does something before it keeps the letter.
type deadLetter struct {
	ackpolicytest.Letters
	before before
}

func (d *deadLetter) Send(ctx context.Context, r *sarama.ConsumerMessage, l ackpolicy.Letter) error {
	if done, err := d.before(&d.Letters, r); done {
		return err
	}
	return d.Letters.Send(ctx, r, l)
}

type refusal struct{ error }

func (refusal) Permanent() bool { return true }

type unmarshal func(*sarama.ConsumerMessage) (*message.Message, error)

func (u unmarshal) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) { return u(r) }

// broken are implementations with a fault each, by what the suites say of it.
var broken = map[string]func(t *testing.T){
	"Send has returned nil, but the record with value": func(t *testing.T) {
		testDeadLetter(t, func(*ackpolicytest.Letters, *sarama.ConsumerMessage) (bool, error) { return true, nil })
	},
	"Send changes the record": func(t *testing.T) {
		testDeadLetter(t, func(_ *ackpolicytest.Letters, r *sarama.ConsumerMessage) (bool, error) {
			r.Headers = nil
			return false, nil
		})
	},
	"Send panics": func(t *testing.T) {
		testDeadLetter(t, func(_ *ackpolicytest.Letters, r *sarama.ConsumerMessage) (bool, error) {
			_ = r.Value[0]
			return false, nil
		})
	},
	"is permanent: the letter would be given up": func(t *testing.T) {
		testDeadLetter(t, func(_ *ackpolicytest.Letters, r *sarama.ConsumerMessage) (bool, error) { return down, refusal{errBoom} })
	},
	"has no method Permanent() bool": func(t *testing.T) {
		testDeadLetter(t, func(_ *ackpolicytest.Letters, r *sarama.ConsumerMessage) (bool, error) {
			return len(r.Value) > 1<<20, errBoom
		})
	},
	"Send of a record that is refused returns nil": func(t *testing.T) {
		testDeadLetter(t, func(_ *ackpolicytest.Letters, r *sarama.ConsumerMessage) (bool, error) {
			return len(r.Value) > 1<<20, nil
		})
	},
	"the second Send of a letter": func(t *testing.T) {
		testDeadLetter(t, func(stored *ackpolicytest.Letters, r *sarama.ConsumerMessage) (bool, error) {
			return slices.ContainsFunc(stored.All(), func(l ackpolicytest.Letter) bool { return bytes.Equal(l.Record.Value, r.Value) }), errBoom
		})
	},
	"Unmarshal panics": func(t *testing.T) {
		ackpolicytest.TestUnmarshaler(t, unmarshal(func(r *sarama.ConsumerMessage) (*message.Message, error) {
			return message.NewMessage("", r.Value[:1]), nil
		}))
	},
	"Unmarshal returns neither a message nor an error": func(t *testing.T) {
		ackpolicytest.TestUnmarshaler(t, unmarshal(func(*sarama.ConsumerMessage) (*message.Message, error) { return nil, nil }))
	},
	"the second Unmarshal of a record returns the same message": func(t *testing.T) {
		msg := newMessage()
		ackpolicytest.TestUnmarshaler(t, unmarshal(func(*sarama.ConsumerMessage) (*message.Message, error) { return msg, nil }), decodable)
	},
	"what a handler changes in a message is in the next one": func(t *testing.T) {
		shared := message.Metadata{}
		ackpolicytest.TestUnmarshaler(t, unmarshal(func(r *sarama.ConsumerMessage) (*message.Message, error) {
			msg := message.NewMessage("", r.Value)
			msg.Metadata = shared
			return msg, nil
		}), decodable)
	},
	"the message has no Metadata": func(t *testing.T) {
		ackpolicytest.TestUnmarshaler(t, unmarshal(func(r *sarama.ConsumerMessage) (*message.Message, error) {
			return &message.Message{Payload: r.Value}, nil
		}), decodable)
	},
}

// down is whether the storage of testDeadLetter is unavailable.
var down bool

func testDeadLetter(t *testing.T, f before) {
	ackpolicytest.TestDeadLetter(t, func(*testing.T) ackpolicytest.Destination {
		d := &deadLetter{before: f}
		return ackpolicytest.Destination{
			DeadLetter: d, Stored: valuesOf(&d.Letters), Break: func(broken bool) { down = broken },
			Refused: &sarama.ConsumerMessage{Value: make([]byte, 2<<20)},
		}
	})
}

const inBroken = "ACKPOLICYTEST_BROKEN"

// The suites find what is broken. Each fault has a process of its own, in which a test fails.
func TestBroken(t *testing.T) {
	if what := os.Getenv(inBroken); what != "" {
		broken[what](t)
		return
	}
	for what := range broken {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestBroken$")
			cmd.Env = append(os.Environ(), inBroken+"="+what)
			out, err := cmd.CombinedOutput()
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || !strings.Contains(string(out), what) {
				t.Errorf("not found: %v\n%s", err, out)
			}
		})
	}
}
