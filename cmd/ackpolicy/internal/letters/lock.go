package letters

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

var (
	errBusy = errors.New("another redrive of this topic is at work")
	errLost = errors.New("this redrive was taken for dead, since Kafka did not hear of it in time, or was removed from its group")
)

// sessionTimeout is how long a redrive that was killed keeps others out.
var sessionTimeout = 10 * time.Second

// lock is the membership of the only member of a consumer group. The coordinator
// refuses whoever has no assignment strategy in common with the members that are
// there, and does not bother these: so each redrive names a strategy that is its own,
// and the first one in keeps the others out. Who dies is out after the session timeout.
//
// A process that is stopped for longer may wake up and believe it has the lock. That
// is why the commits carry the membership, and why the producer's transactional id is
// one for all: a newer redrive fences both.
type lock struct {
	client     sarama.Client
	group      string
	member     string
	generation int32
	stop       context.CancelFunc
	done       chan struct{}
}

// acquire joins the group, and returns a context that ends when the membership does.
// While another member is in, it waits for as long as a dead one would stay.
func acquire(
	ctx context.Context, client sarama.Client, group, topic string, partitions []int32, session time.Duration, waiting func(holder string),
) (*lock, context.Context, error) {
	strategy := "redrive-" + rand.Text()
	metadata := &sarama.ConsumerGroupMemberMetadata{Version: 1, Topics: []string{topic}, UserData: []byte(self())}
	l := &lock{client: client, group: group}
	reported := false
	for deadline := time.Now().Add(session + 2*time.Second); ; {
		err := l.join(ctx, strategy, metadata, session)
		if err == nil {
			break
		}
		if !errors.Is(err, sarama.ErrInconsistentGroupProtocol) {
			return nil, nil, fmt.Errorf("cannot join group %s: %w", group, err)
		}
		holder := l.holder(ctx)
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("%w: %s is in group %s", errBusy, holder, group)
		}
		if !reported {
			waiting(holder)
			reported = true
		}
		if !wait.For(min(time.Second, session/4), ctx.Done()) {
			return nil, nil, context.Cause(ctx)
		}
	}
	if err := l.sync(ctx, strategy, topic, partitions); err != nil {
		l.leave()
		return nil, nil, fmt.Errorf("cannot join group %s: %w", group, err)
	}
	beats, stop := context.WithCancel(context.Background())
	held, lose := context.WithCancelCause(ctx)
	l.stop, l.done = stop, make(chan struct{})
	go func() {
		defer close(l.done)
		defer lose(nil)
		l.beat(beats, session/3, lose)
	}()
	return l, held, nil
}

// self is what others see of who holds the lock.
func self() string {
	host, _ := os.Hostname()
	user := os.Getenv("USER")
	if user == "" {
		user = "somebody"
	}
	return fmt.Sprintf("%s@%s, process %d, since %s", user, host, os.Getpid(), time.Now().UTC().Format(time.RFC3339))
}

func (l *lock) join(ctx context.Context, strategy string, metadata *sarama.ConsumerGroupMemberMetadata, session time.Duration) error {
	return kafka.AtCoordinator(ctx, l.client, l.group, func(coordinator *sarama.Broker) error {
		for {
			request := sarama.NewJoinGroupRequest(l.client.Config().Version)
			request.GroupId, request.MemberId, request.ProtocolType = l.group, l.member, "consumer"
			request.SessionTimeout = int32(session.Milliseconds())
			request.RebalanceTimeout = request.SessionTimeout
			if err := request.AddGroupProtocolMetadata(strategy, metadata); err != nil {
				return err
			}
			response, err := coordinator.JoinGroup(request)
			switch {
			case err != nil:
				return err
			case errors.Is(response.Err, sarama.ErrMemberIdRequired):
				l.member = response.MemberId
			case errors.Is(response.Err, sarama.ErrUnknownMemberId) && l.member != "":
				l.member = ""
			case response.Err != sarama.ErrNoError:
				return response.Err
			default:
				l.member, l.generation = response.MemberId, response.GenerationId
				return nil
			}
		}
	})
}

// sync takes all partitions, so that Kafka's tools show who has them.
func (l *lock) sync(ctx context.Context, strategy, topic string, partitions []int32) error {
	return kafka.AtCoordinator(ctx, l.client, l.group, func(coordinator *sarama.Broker) error {
		kind := "consumer"
		request := &sarama.SyncGroupRequest{
			Version: 5, GroupId: l.group, MemberId: l.member, GenerationId: l.generation, ProtocolType: &kind, ProtocolName: &strategy,
		}
		assignment := &sarama.ConsumerGroupMemberAssignment{Version: 1, Topics: map[string][]int32{topic: partitions}}
		if err := request.AddGroupAssignmentMember(l.member, assignment); err != nil {
			return err
		}
		response, err := coordinator.SyncGroup(request)
		if err == nil && response.Err != sarama.ErrNoError {
			err = response.Err
		}
		return err
	})
}

// beat keeps the membership alive until ctx ends or the coordinator ends it.
func (l *lock) beat(ctx context.Context, every time.Duration, lose context.CancelCauseFunc) {
	for wait.For(every, ctx.Done()) {
		err := kafka.AtCoordinator(ctx, l.client, l.group, func(coordinator *sarama.Broker) error {
			response, err := coordinator.Heartbeat(&sarama.HeartbeatRequest{
				Version: 4, GroupId: l.group, MemberId: l.member, GenerationId: l.generation,
			})
			if err == nil && response.Err != sarama.ErrNoError {
				err = response.Err
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			lose(fmt.Errorf("%w (group %s: %w)", errLost, l.group, err))
			return
		}
	}
}

// release ends the membership, so that the next redrive need not wait.
func (l *lock) release() {
	l.stop()
	<-l.done
	l.leave()
}

func (l *lock) leave() {
	if coordinator, err := l.client.Coordinator(l.group); err == nil {
		_, _ = coordinator.LeaveGroup(&sarama.LeaveGroupRequest{
			Version: 4, GroupId: l.group, Members: []sarama.MemberIdentity{{MemberId: l.member}},
		})
	}
}

// membership is what the commits carry.
func (l *lock) membership() *sarama.ConsumerGroupMetadata {
	return &sarama.ConsumerGroupMetadata{GroupID: l.group, MemberID: l.member, GenerationID: l.generation}
}

// holder says who is in the group, as far as it can be learned.
func (l *lock) holder(ctx context.Context) string {
	holder := "a member that cannot be described"
	group, err := kafka.Describe(ctx, l.client, l.group)
	if err != nil {
		return holder
	}
	for _, m := range group.Members {
		holder = fmt.Sprintf("%s at %s", cli.Clean(m.ClientId), cli.Clean(m.ClientHost))
		if metadata, err := m.GetMemberMetadata(); err == nil && metadata != nil && len(metadata.UserData) > 0 {
			holder = fmt.Sprintf("%s (%s)", cli.Clean(string(metadata.UserData)), holder)
		}
	}
	return holder
}
