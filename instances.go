package ackpolicy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
)

// maxInstanceID is the longest static member id that Kafka takes.
const maxInstanceID = 249

// instances holds the static member ids in use in this process. Kafka knows a member
// by group and id: two with the same fence each other, whichever Subscriber they are of.
var instances = instanceRegistry{used: map[instanceKey]struct{}{}}

type instanceRegistry struct {
	mu   sync.Mutex
	used map[instanceKey]struct{}
}

type instanceKey struct{ group, instance string }

// take returns the static member id of a topic's next subscription. It holds the topic: the
// broker gives a member that comes back under its id its old assignment, whatever it
// subscribes to now, and the order of Subscribes differs from start to start.
func (r *instanceRegistry) take(group, id, topic string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := 1; ; n++ {
		key := instanceKey{group, instanceID(id, topic, n)}
		if _, ok := r.used[key]; !ok {
			r.used[key] = struct{}{}
			return key.instance
		}
	}
}

func (r *instanceRegistry) release(group, instance string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.used, instanceKey{group, instance})
}

// instanceID returns the id of a topic's n-th subscription. The number comes first, or
// the second one of "orders" had the name of the first one of a topic "orders-2".
func instanceID(id, topic string, n int) string {
	name := id + "-" + topic
	if n > 1 {
		name = fmt.Sprintf("%s.%d.%s", id, n, topic)
	}
	if len(name) > maxInstanceID {
		sum := sha256.Sum256([]byte(name))
		hash := hex.EncodeToString(sum[:8])
		name = name[:maxInstanceID-len(hash)-1] + "-" + hash
	}
	return name
}
