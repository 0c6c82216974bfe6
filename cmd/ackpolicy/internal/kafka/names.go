package kafka

import (
	"maps"
	"slices"
	"strings"

	"github.com/IBM/sarama"
)

// TopicNames returns the topics that the user may see, without Kafka's own.
func TopicNames(client sarama.Client) ([]string, error) {
	broker := client.LeastLoadedBroker()
	if broker == nil {
		return nil, sarama.ErrOutOfBrokers
	}
	response, err := broker.GetMetadata(sarama.NewMetadataRequest(client.Config().Version, nil))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, t := range response.Topics {
		if !t.IsInternal {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// GroupNames returns the consumer groups that the user may see.
func GroupNames(client sarama.Client) ([]string, error) {
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return nil, err
	}
	// The admin is not closed: that would close the client, which is not its own.
	groups, err := admin.ListConsumerGroups()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(groups, func(_, kind string) bool { return !strings.EqualFold(kind, "consumer") && kind != "" })
	return slices.Sorted(maps.Keys(groups)), nil
}
