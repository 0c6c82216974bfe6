package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// outcome is what a policy made of one order.
type outcome struct {
	deliveries int
	status     ackpolicy.Status
	shipped    int
}

func (o outcome) String() string {
	confirmed := "no"
	if o.shipped > 0 {
		confirmed = strings.Repeat("✓", o.shipped)
	}
	return fmt.Sprintf("%d× %-8v %s", o.deliveries, o.status, confirmed)
}

func (s *shop) outcome(id string) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return outcome{s.delivered[id], s.status[id], s.shipped[id]}
}

// want is what the policies promise, order by order.
func want(policy ackpolicy.Policy, trouble string) outcome {
	const acked, rejected = ackpolicy.Acked, ackpolicy.Rejected
	if policy == ackpolicy.AckFirst { // acked before the handler ran: whatever fails then is lost
		if trouble == none {
			return outcome{1, acked, 1}
		}
		return outcome{1, acked, 0}
	}
	switch trouble { // the same under all the others: no trouble, or a signal
	case none:
		return outcome{1, acked, 1}
	case invalid:
		return outcome{1, rejected, 0}
	case duplicate:
		return outcome{1, acked, 0}
	case busy:
		return outcome{2, acked, 1}
	}
	switch policy { // an error, a panic, a failed publish
	case ackpolicy.Ack:
		return outcome{1, acked, 0}
	case ackpolicy.RejectOnError:
		return outcome{1, rejected, 0}
	}
	if trouble == stubborn { // NackOnError, and what the handler does by hand under Manual
		return outcome{3, acked, 1}
	}
	return outcome{2, acked, 1}
}

// check compares everything with what was promised, and names each difference.
func check(services []*service) error {
	var problems []error
	differs := func(what string, got, want any) {
		if got != want {
			problems = append(problems, fmt.Errorf("%s\n    got   %v\n    want  %v", what, got, want))
		}
	}
	for _, s := range services {
		for _, order := range orders {
			what := fmt.Sprintf("%v, order %s (%s)", s.policy, order.ID, order.Trouble)
			differs(what, s.shop.outcome(order.ID), want(s.policy, order.Trouble))
		}
		differs(fmt.Sprintf("%v, the stored offset", s.policy), s.stored, int64(len(orders)))
		if s.policy == ackpolicy.Manual {
			differs("manual, the stored offset while the first order was open", s.held, int64(0))
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("%d differences:\n  %w", len(problems), errors.Join(problems...))
}

const (
	headWidth = 28
	cellWidth = 17
)

func printTable(out io.Writer, services []*service) {
	line := func(head string, cell func(*service) string) {
		text := fmt.Sprintf("%-*s", headWidth, head)
		for _, s := range services {
			text += fmt.Sprintf("%-*s", cellWidth, cell(s))
		}
		fmt.Fprintln(out, strings.TrimRight(text, " "))
	}
	rule := func() { fmt.Fprintln(out, strings.Repeat("─", headWidth+cellWidth*len(services)-2)) }

	line("order", func(s *service) string { return s.policy.String() })
	rule()
	for _, order := range orders {
		line(order.ID+" "+order.Trouble, func(s *service) string { return s.shop.outcome(order.ID).String() })
	}
	rule()
	line("offset stored by Kafka", func(s *service) string { return fmt.Sprint(s.stored) })
	fmt.Fprint(out, `
  2× acked    ✓   delivered twice, finally acked, its confirmation published
  1× acked    no  over and done with, but no confirmation was published

`)
	for _, s := range services {
		if s.policy == ackpolicy.Manual {
			fmt.Fprintf(out, "Under manual, order %s was left open by its handler. Meanwhile all the others were settled, and Kafka still\n"+
				"stored offset %d. Then another goroutine acked it, and Kafka stored %d.\n", orders[0].ID, s.held, s.stored)
		}
	}
}
