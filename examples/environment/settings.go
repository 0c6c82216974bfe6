package main

import (
	_ "embed"
	"fmt"
	"time"

	"github.com/caarlos0/env/v11"
	"go.yaml.in/yaml/v3"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// What is the same in every environment.
//
//go:embed subscriber.yaml
var file []byte

// variables are what differs. Policies, orderings and header profiles have texts.
type variables struct {
	Brokers      []string                `env:"KAFKA_BROKERS,required"`
	Policy       *ackpolicy.Policy       `env:"ACK_POLICY"`
	Ordering     ackpolicy.Ordering      `env:"ORDERING" envDefault:"key"`
	MaxAge       time.Duration           `env:"MAX_AGE" envDefault:"15m"`
	OnUnstorable ackpolicy.Unstorable    `env:"ON_UNSTORABLE" envDefault:"keep"`
	Headers      ackpolicy.HeaderProfile `env:"LETTER_HEADERS" envDefault:"ackpolicy"`
}

// load returns the configuration: the file, with the variables over it.
func load() (c ackpolicy.SubscriberConfig, err error) {
	if err := yaml.Unmarshal(file, &c); err != nil {
		return c, fmt.Errorf("subscriber.yaml: %w", err)
	}
	v, err := env.ParseAs[variables]()
	if err != nil {
		return c, err
	}
	c.Kafka.Brokers, c.Ordering, c.MaxAge, c.OnUnstorable = v.Brokers, v.Ordering, v.MaxAge, v.OnUnstorable
	if v.Policy != nil {
		c.Policy = v.Policy
	}
	letters := c.DeadLetter.(ackpolicy.DeadLetterTopic) // as the file says
	letters.Headers = v.Headers
	c.DeadLetter = letters
	return c, c.Validate()
}
