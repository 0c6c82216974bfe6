package middlewares_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/sony/gobreaker"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// unavailable reports whether an error is the breaker's own: the handler was not called.
func unavailable(err error) bool {
	return errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests)
}

// byRecord lets a record that comes again pass: a duplicate is the same key at another offset.
type byRecord struct {
	middleware.ExpiringKeyRepository
}

func (r byRecord) IsDuplicate(ctx context.Context, key string) (bool, error) {
	seen, err := r.ExpiringKeyRepository.IsDuplicate(ctx, key)
	d, ok := ackpolicy.FromContext(ctx)
	if err != nil || !ok || d.Offset() < 0 {
		return seen, err
	}
	again, err := r.ExpiringKeyRepository.IsDuplicate(ctx, fmt.Sprintf("%s@%s/%d/%d", key, d.Topic(), d.Partition(), d.Offset()))
	return seen && !again, err
}
