package consumer

import (
	"fmt"
	"slices"
	"sync"

	"github.com/IBM/sarama"
)

// OwnStrategy returns what stands for a balance strategy in one member's configuration. Members of one
// process share the configuration, so sarama's strategies with a state are made for each.
// One of the application's own type cannot be: its calls come one at a time, and a panic in it fails the rebalance, not the process.
func OwnStrategy(s sarama.BalanceStrategy) sarama.BalanceStrategy {
	if s == nil {
		return nil
	}
	stock := []func() sarama.BalanceStrategy{
		sarama.NewBalanceStrategySticky, sarama.NewBalanceStrategyCooperativeSticky,
		sarama.NewBalanceStrategyRange, sarama.NewBalanceStrategyRoundRobin,
	}
	for i, fresh := range stock {
		if own := fresh(); fmt.Sprintf("%T", own) == fmt.Sprintf("%T", s) {
			if stateful := i < 2; !stateful {
				return s
			}
			return own
		}
	}
	guarded := guardedStrategy{s}
	if user, ok := s.(sarama.SubscriptionUserDataBalanceStrategy); ok {
		return userDataStrategy{guarded, user}
	}
	return guarded
}

// KeepsState reports whether a strategy is of the application's own type and remembers what its member was
// assigned, so that a second member cannot use it.
func KeepsState(s sarama.BalanceStrategy) bool {
	guarded, ok := OwnStrategy(s).(interface{ inner() sarama.BalanceStrategy })
	if !ok {
		return false
	}
	_, ok = guarded.inner().(sarama.OnAssignmentBalanceStrategy)
	return ok
}

// strategies serializes the calls of applications' own strategies. They are made by the
// leaders of groups, once a rebalance.
var strategies sync.Mutex

// guardedStrategy is a strategy of the application's own type.
type guardedStrategy struct{ sarama.BalanceStrategy }

func (s guardedStrategy) inner() sarama.BalanceStrategy { return s.BalanceStrategy }

// guard calls the application's code.
func (s guardedStrategy) guard(call func()) (err error) {
	strategies.Lock()
	defer strategies.Unlock()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the balance strategy %T panicked: %v", s.BalanceStrategy, r)
		}
	}()
	call()
	return nil
}

func (s guardedStrategy) Plan(members map[string]sarama.ConsumerGroupMemberMetadata, topics map[string][]int32) (plan sarama.BalanceStrategyPlan, err error) {
	if panicked := s.guard(func() { plan, err = s.BalanceStrategy.Plan(members, topics) }); panicked != nil {
		return nil, panicked
	}
	return plan, err
}

func (s guardedStrategy) AssignmentData(member string, topics map[string][]int32, generation int32) (data []byte, err error) {
	if panicked := s.guard(func() { data, err = s.BalanceStrategy.AssignmentData(member, topics, generation) }); panicked != nil {
		return nil, panicked
	}
	return data, err
}

// SupportedProtocols implements sarama.RebalanceProtocolBalanceStrategy; a strategy that does not is eager.
func (s guardedStrategy) SupportedProtocols() []sarama.RebalanceProtocol {
	if p, ok := s.BalanceStrategy.(sarama.RebalanceProtocolBalanceStrategy); ok {
		return p.SupportedProtocols()
	}
	return []sarama.RebalanceProtocol{sarama.RebalanceProtocolEager}
}

// OnAssignment implements sarama.OnAssignmentBalanceStrategy.
func (s guardedStrategy) OnAssignment(assignment *sarama.ConsumerGroupMemberAssignment, generation int32) {
	if on, ok := s.BalanceStrategy.(sarama.OnAssignmentBalanceStrategy); ok {
		// Its panic is not worth the assignment, which holds without it.
		if err := s.guard(func() { on.OnAssignment(assignment, generation) }); err != nil {
			sarama.Logger.Println(err)
		}
	}
}

// userDataStrategy is one that has user data of its own for each JoinGroup. Without it sarama sends the configured.
type userDataStrategy struct {
	guardedStrategy
	user sarama.SubscriptionUserDataBalanceStrategy
}

func (s userDataStrategy) SubscriptionUserData(topics []string) (data []byte, err error) {
	if panicked := s.guard(func() { data, err = s.user.SubscriptionUserData(topics) }); panicked != nil {
		return nil, panicked
	}
	return data, err
}

func isCooperative(cfg *sarama.Config) bool {
	rebalance := &cfg.Consumer.Group.Rebalance
	strategies := rebalance.GroupStrategies
	if rebalance.Strategy != nil {
		strategies = []sarama.BalanceStrategy{rebalance.Strategy}
	}
	for _, s := range strategies { // as sarama chooses
		p, ok := s.(sarama.RebalanceProtocolBalanceStrategy)
		if !ok || !slices.Contains(p.SupportedProtocols(), sarama.RebalanceProtocolCooperative) {
			return false
		}
	}
	return len(strategies) > 0
}
