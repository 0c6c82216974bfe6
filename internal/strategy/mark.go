package strategy

import "github.com/IBM/sarama"

// Suffix is what Mark appends to the names of strategies.
const Suffix = "+transactions"

// Mark makes a member find out whether all members of its group are marked. A group uses a strategy whose name all of
// its members have. So a marked member offers each of its strategies under a second name, and prefers that: with one
// member that is not marked, the group has to use another name. After each rebalance, chosen is called with whether
// all members are marked.
//
// It takes no request and no right, and each member learns of it as soon as it has its assignment.
func Mark(cfg *sarama.Config, chosen func(all bool)) {
	var marked, plain []sarama.BalanceStrategy
	for _, s := range strategiesOf(cfg) {
		marked = append(marked, withCall(s, s.Name()+Suffix, func() { chosen(true) }))
		plain = append(plain, withCall(s, s.Name(), func() { chosen(false) }))
	}
	rebalance := &cfg.Consumer.Group.Rebalance
	rebalance.Strategy, rebalance.GroupStrategies = nil, append(marked, plain...)
}

// named is a strategy under a name, which calls chosen when its group uses it under that.
type named struct {
	sarama.BalanceStrategy
	name   string
	chosen func()
}

func withCall(s sarama.BalanceStrategy, name string, chosen func()) sarama.BalanceStrategy {
	n := named{s, name, chosen}
	if user, ok := s.(sarama.SubscriptionUserDataBalanceStrategy); ok {
		return namedWithUserData{n, user}
	}
	return n
}

func (n named) Name() string { return n.name }

// SupportedProtocols implements sarama.RebalanceProtocolBalanceStrategy.
func (n named) SupportedProtocols() []sarama.RebalanceProtocol { return protocols(n.BalanceStrategy) }

// OnAssignment implements sarama.OnAssignmentBalanceStrategy.
func (n named) OnAssignment(assignment *sarama.ConsumerGroupMemberAssignment, generation int32) {
	if on, ok := n.BalanceStrategy.(sarama.OnAssignmentBalanceStrategy); ok {
		on.OnAssignment(assignment, generation)
	}
	n.chosen()
}

// namedWithUserData is one that has user data of its own for each JoinGroup. Without it sarama sends what is configured.
type namedWithUserData struct {
	named
	user sarama.SubscriptionUserDataBalanceStrategy
}

func (n namedWithUserData) SubscriptionUserData(topics []string) ([]byte, error) {
	return n.user.SubscriptionUserData(topics)
}
