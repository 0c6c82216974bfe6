package transactions_test

import (
	"testing"
)

func TestCopyOnce(t *testing.T) {
	t.Parallel()
	s := newSpec(t, 2, 500)
	service := s.start(t)
	s.waitSettled(t)
	service.Stop()
	s.judge(t, 2, 500)
}
