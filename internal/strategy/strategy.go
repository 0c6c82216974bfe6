// Package strategy makes balance strategies safe to use for several members of a process.
package strategy

import (
	"fmt"
	"slices"
	"sync"

	"github.com/IBM/sarama"
)

// Own returns the balance strategy for one member's configuration. Members of one process
// share the application's configuration, so each gets a new one of sarama's strategies with
// state. One of the application's own type cannot be made again: its calls come one at a
// time, and a panic in it fails the rebalance, not the process.
func Own(s sarama.BalanceStrategy) sarama.BalanceStrategy {
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
	own := guarded{s}
	if user, ok := s.(sarama.SubscriptionUserDataBalanceStrategy); ok {
		return withUserData{own, user}
	}
	return own
}

// KeepsState reports whether a strategy is of the application's own type and remembers what its member was
// assigned, so that a second member cannot use it.
func KeepsState(s sarama.BalanceStrategy) bool {
	own, ok := Own(s).(interface{ inner() sarama.BalanceStrategy })
	if !ok {
		return false
	}
	_, ok = own.inner().(sarama.OnAssignmentBalanceStrategy)
	return ok
}

// calls serializes the calls of applications' own strategies. The leaders of groups make
// them, once per rebalance.
var calls sync.Mutex

// guarded is a strategy of the application's own type.
type guarded struct{ sarama.BalanceStrategy }

func (s guarded) inner() sarama.BalanceStrategy { return s.BalanceStrategy }

// guard calls the application's code.
func (s guarded) guard(call func()) (err error) {
	calls.Lock()
	defer calls.Unlock()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the balance strategy %T panicked: %v", s.BalanceStrategy, r)
		}
	}()
	call()
	return nil
}

func (s guarded) Plan(members map[string]sarama.ConsumerGroupMemberMetadata, topics map[string][]int32) (plan sarama.BalanceStrategyPlan, err error) {
	if panicked := s.guard(func() { plan, err = s.BalanceStrategy.Plan(members, topics) }); panicked != nil {
		return nil, panicked
	}
	return plan, err
}

func (s guarded) AssignmentData(member string, topics map[string][]int32, generation int32) (data []byte, err error) {
	if panicked := s.guard(func() { data, err = s.BalanceStrategy.AssignmentData(member, topics, generation) }); panicked != nil {
		return nil, panicked
	}
	return data, err
}

// SupportedProtocols implements sarama.RebalanceProtocolBalanceStrategy.
func (s guarded) SupportedProtocols() []sarama.RebalanceProtocol { return protocols(s.BalanceStrategy) }

// OnAssignment implements sarama.OnAssignmentBalanceStrategy.
func (s guarded) OnAssignment(assignment *sarama.ConsumerGroupMemberAssignment, generation int32) {
	if on, ok := s.BalanceStrategy.(sarama.OnAssignmentBalanceStrategy); ok {
		// Its panic is not worth the assignment, which holds without it.
		if err := s.guard(func() { on.OnAssignment(assignment, generation) }); err != nil {
			sarama.Logger.Println(err)
		}
	}
}

// withUserData is one that has user data of its own for each JoinGroup. Without it sarama sends what is configured.
type withUserData struct {
	guarded
	user sarama.SubscriptionUserDataBalanceStrategy
}

func (s withUserData) SubscriptionUserData(topics []string) (data []byte, err error) {
	if panicked := s.guard(func() { data, err = s.user.SubscriptionUserData(topics) }); panicked != nil {
		return nil, panicked
	}
	return data, err
}

// Cooperative reports whether a member with this configuration rebalances cooperatively.
func Cooperative(cfg *sarama.Config) bool {
	strategies := strategiesOf(cfg)
	for _, s := range strategies { // as sarama chooses
		if !slices.Contains(protocols(s), sarama.RebalanceProtocolCooperative) {
			return false
		}
	}
	return len(strategies) > 0
}

// protocols returns those that a strategy supports; one that does not say is eager.
func protocols(s sarama.BalanceStrategy) []sarama.RebalanceProtocol {
	if p, ok := s.(sarama.RebalanceProtocolBalanceStrategy); ok {
		return p.SupportedProtocols()
	}
	return []sarama.RebalanceProtocol{sarama.RebalanceProtocolEager}
}

// strategiesOf returns the strategies of a configuration. The deprecated field takes precedence.
func strategiesOf(cfg *sarama.Config) []sarama.BalanceStrategy {
	rebalance := &cfg.Consumer.Group.Rebalance
	if rebalance.Strategy != nil {
		return []sarama.BalanceStrategy{rebalance.Strategy}
	}
	return rebalance.GroupStrategies
}
