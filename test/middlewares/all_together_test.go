package middlewares_test

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/sony/gobreaker"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// allTogether is a policy with everything in its place around it, the outermost first.
func allTogether(policy ackpolicy.Policy, poisonPublisher message.Publisher, poisonTopic string) ([]message.HandlerMiddleware, error) {
	keys, err := middleware.NewMapExpiringKeyRepository(time.Minute)
	if err != nil {
		return nil, err
	}
	failure := func(err error) bool { return !ackpolicy.IsSignal(err) && !unavailable(err) }
	poison, err := middleware.PoisonQueueWithFilter(poisonPublisher, poisonTopic, failure)
	if err != nil {
		return nil, err
	}
	return []message.HandlerMiddleware{
		middleware.NewThrottle(1000, time.Second).Middleware,
		(&middleware.Deduplicator{
			KeyFactory: middleware.NewMessageHasherSHA256(1 << 20),
			Repository: byRecord{keys},
			Timeout:    time.Second,
		}).Middleware,
		middleware.CorrelationID,
		ackpolicy.Middleware{
			Policy:   policy,
			Classify: func(err error) (ackpolicy.Policy, bool) { return ackpolicy.NackOnError, unavailable(err) },
		}.Middleware,
		poison,
		middleware.Retry{
			MaxRetries:          1,
			InitialInterval:     10 * time.Millisecond,
			ResetContextOnRetry: true,
			ShouldRetry:         func(p middleware.RetryParams) bool { return failure(p.Err) },
		}.Middleware,
		middleware.NewCircuitBreaker(gobreaker.Settings{
			IsSuccessful: func(err error) bool { return err == nil || ackpolicy.IsSignal(err) },
		}).Middleware,
		ackpolicy.RestoreContext,
		middleware.Timeout(time.Second),
		middleware.Recoverer,
	}, nil
}
