// Package topic selects topics, and reads their settings.
package topic

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/IBM/sarama"
)

// Settings has the settings of a topic by name. It is empty if we may not read them.
type Settings map[string]string

// Ask returns the settings with the given names.
func Ask(client sarama.Client, topic string, names ...string) (Settings, error) {
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return nil, err
	}
	// The admin is not closed: that would close the caller's client.
	results, err := admin.DescribeConfigs([]*sarama.ConfigResource{
		{Type: sarama.TopicResource, Name: topic, ConfigNames: names},
	}, sarama.DescribeConfigsOptions{})
	if err != nil {
		return nil, err
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("no response for topic %s", topic)
	}
	r := results[0]
	if r.ErrorCode != 0 {
		return nil, errors.Join(sarama.KError(r.ErrorCode), errors.New(r.ErrorMsg))
	}
	settings := Settings{}
	for _, e := range r.Configs {
		settings[e.Name] = e.Value
	}
	return settings, nil
}

// Number returns a numeric setting. ok is false if it is not known.
func (s Settings) Number(name string) (value int64, ok bool) {
	value, err := strconv.ParseInt(s[name], 10, 64)
	return value, err == nil
}
