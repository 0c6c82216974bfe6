package reread

import "github.com/ackpolicy/watermill-ackpolicy/internal/topic"

// Setting returns a setting of the topic, or "" if we may not read it.
func (r *Reader) Setting(name string) (string, error) {
	settings, err := topic.Ask(r.client, r.topic, name)
	return settings[name], err
}
