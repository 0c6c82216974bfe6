package consumer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// place is a partition of a topic, or with partition -1 the topic as a whole.
type place struct {
	topic     string
	partition int32
}

// everywhere is the place of what is not about one topic.
var everywhere = place{partition: -1}

func byPlace(a, b place) int {
	return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.partition, b.partition))
}

// placesOf returns the partitions of a session.
func placesOf(claims map[string][]int32) (all []place) {
	for topic, partitions := range claims {
		for _, p := range partitions {
			all = append(all, place{topic, p})
		}
	}
	return all
}

// most is how many partitions a line names.
const most = 10

// listed names partitions: how many, and the first ones. With several topics it names these too.
func listed(places []place, several bool) string {
	if !several {
		places = slices.DeleteFunc(places, func(at place) bool { return at.partition < 0 })
	}
	slices.SortFunc(places, byPlace)
	var names []string
	for _, at := range places[:min(most, len(places))] {
		switch {
		case !several:
			names = append(names, fmt.Sprint(at.partition))
		case at.partition < 0:
			names = append(names, at.topic)
		default:
			names = append(names, fmt.Sprintf("%s/%d", at.topic, at.partition))
		}
	}
	if len(places) > most {
		names = append(names, "…")
	}
	return fmt.Sprintf("%d: %s", len(places), strings.Join(names, ", "))
}
