package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

const timeout = 30 * time.Second

// look does what somebody on call does: looks, acts, and looks again.
func look(s *service, at string) error {
	fmt.Println("\nWaiting until all of the trouble shows:")
	steps := []struct {
		what  string
		holds func() error
	}{
		{"the probe is red, and names the record whose handler hangs", func() error {
			return contains(at+"/readyz", http.StatusServiceUnavailable, `"code":"slow_handler"`, `"topic":"payments","partition":0,"offset":0`, `"handler":"charge"`)
		}},
		{"the process need not be restarted for it", func() error { return contains(at+"/livez", http.StatusOK) }},
		{"the metrics count a slow handler, a record that waits, and a letter that does not get away", func() error {
			return contains(at+"/metrics", http.StatusOK,
				`ackpolicy_slow_handlers{consumer_group="billing",handler_name="charge",topic="payments"} 1`,
				`ackpolicy_unstored_letters{consumer_group="billing",handler_name="charge",topic="payments"} 1`,
				`ackpolicy_nacked_records{consumer_group="billing",handler_name="charge",topic="payments"} 1`,
				`ackpolicy_partition_oldest_record_offset{consumer_group="billing",partition="1",topic="payments"} 0`,
				`ackpolicy_ready{consumer_group="billing"} 0`)
		}},
		{"the page shows all three, with their errors", func() error {
			return contains(at+"/ackpolicy/", http.StatusOK, "payments/0@0", "payments/1@0", "payments/2@0", "422 unknown currency")
		}},
		{"what does not wait for them is committed beside them", s.rest},
	}
	for _, step := range steps {
		if err := eventually(step.what, step.holds); err != nil {
			return err
		}
	}

	fmt.Println("\nThe record that fails is rejected by hand, the others are fixed:")
	if err := s.subscriber.Reject("the example", topic, fails, 0, "XTS is a currency for tests"); err != nil {
		return err
	}
	s.fix()
	for _, step := range []struct {
		what  string
		holds func() error
	}{
		{"nothing holds a partition any more", func() error {
			return contains(at+"/readyz", http.StatusOK, `"ready":true`)
		}},
		{"the metrics say so, too", func() error {
			return contains(at+"/metrics", http.StatusOK,
				`ackpolicy_slow_handlers{consumer_group="billing",handler_name="charge",topic="payments"} 0`,
				`ackpolicy_unstored_letters{consumer_group="billing",handler_name="charge",topic="payments"} 0`,
				`ackpolicy_work_lag_records{consumer_group="billing",handler_name="charge",topic="payments"} 0`,
				`ackpolicy_rejected_records_total{consumer_group="billing",topic="payments"} 2`,
				`ackpolicy_ready{consumer_group="billing"} 1`)
		}},
		{"two letters were stored, and one says who gave its record up", func() error {
			letters := s.archive.letters()
			if len(letters) != 2 {
				return fmt.Errorf("%d letters", len(letters))
			}
			for _, letter := range letters {
				if errors.Is(letter.Reason, ackpolicy.ErrByHand) && strings.Contains(letter.Reason.Error(), "the example") {
					return nil
				}
			}
			return errors.New("no letter says so")
		}},
	} {
		if err := eventually(step.what, step.holds); err != nil {
			return err
		}
	}
	return nil
}

// rest reports whether of each partition only the record in trouble is left, and what waits for its key.
func (s *service) rest() error {
	for _, sub := range s.subscriber.State().Subscriptions {
		for _, p := range sub.Partitions {
			if p.Oldest == nil || p.Oldest.Offset != 0 || p.Unsettled > 2 {
				return fmt.Errorf("partition %d: %d records are not settled, the oldest is %+v", p.Partition, p.Unsettled, p.Oldest)
			}
		}
	}
	return nil
}

func eventually(what string, holds func() error) error {
	began := time.Now()
	var err error
	for time.Since(began) < timeout {
		if err = holds(); err == nil {
			fmt.Printf("- %s (after %v)\n", what, time.Since(began).Round(100*time.Millisecond))
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("not seen in %v: %s: %w", timeout, what, err)
}

// contains asks for a page, and reports what of it is not as it should be.
func contains(address string, status int, texts ...string) error {
	response, err := http.Get(address)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != status {
		return fmt.Errorf("%s: status %d, not %d: %s", address, response.StatusCode, status, body)
	}
	for _, text := range texts {
		if !strings.Contains(string(body), text) {
			return fmt.Errorf("%s: no %q", address, text)
		}
	}
	return nil
}
