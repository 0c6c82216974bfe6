package topic

import (
	"slices"
	"strings"
	"testing"
)

func TestSelect(t *testing.T) {
	for _, c := range []struct {
		text    string
		has     string // names, with commas
		hasNot  string
		id      string // up to its checksum
		pattern bool
	}{
		{text: "orders", has: "orders", hasNot: "order,orders2", id: "orders"},
		{text: "orders.eu_1-x", has: "orders.eu_1-x", hasNot: "orders-eu_1-x", id: "orders.eu_1-x"},
		{text: "orders, invoices,orders", has: "orders,invoices", hasNot: "orders,invoices,", id: "invoices_orders-"},
		{text: "orders.*", has: "orders.eu,orders.eu.new,orders.", hasNot: "orders,xorders.eu,ordersXeu,orders.eu.dlq", id: "orders._-", pattern: true},
		{text: "*.orders.v?", has: "eu.orders.v1", hasNot: "eu.orders.v,eu.orders.v10,__eu.orders.v1", id: "_.orders.v_-", pattern: true},
		{text: "*", has: "orders,_schemas", hasNot: "__consumer_offsets,__transaction_state,orders.dlq", id: "_-", pattern: true},
		{text: "orders.*, orders.dlq", has: "orders.eu,orders.dlq", hasNot: "orders.eu.dlq", id: "orders._", pattern: true},
		{text: "*.dlq", has: "orders.dlq", hasNot: "orders", id: "_.dlq-", pattern: true},
		{text: "__eu.*", has: "__eu.orders", hasNot: "__consumer_offsets", id: "__eu._-", pattern: true},
	} {
		s, err := Select(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		for _, name := range strings.Split(c.has, ",") {
			if !s.Has(name) {
				t.Errorf("%s does not have %s", c.text, name)
			}
		}
		for _, name := range strings.Split(c.hasNot, ",") {
			if s.Has(name) && !slices.Contains(strings.Split(c.has, ","), name) {
				t.Errorf("%s has %s", c.text, name)
			}
		}
		if !strings.HasPrefix(s.ID(), c.id) || strings.Trim(s.ID(), legal) != "" || len(s.ID()) > 120 {
			t.Errorf("the id of %s: %s", c.text, s.ID())
		}
		if s.Patterns() != c.pattern {
			t.Errorf("%s: patterns: %v", c.text, s.Patterns())
		}
	}
	for _, bad := range []string{"^orders", "orders/eu", "orders,", ",", "orders,,invoices", "orders eu", "orders.[ab]", "ördérs", "orders{1,2}", "", " ", ".", "..", strings.Repeat("x", 250)} {
		if _, err := Select(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: got %v, want an error that has it", bad, err)
		}
	}
}

// The id of a static member must not depend on how the same topics are written.
func TestIDOfASelection(t *testing.T) {
	id := func(text string) string {
		s, err := Select(text)
		if err != nil {
			t.Fatal(err)
		}
		return s.ID()
	}
	if a, b := id("orders,invoices.*"), id("invoices.*, orders"); a != b {
		t.Errorf("got %s and %s", a, b)
	}
	for _, pair := range [][2]string{{"a,b", "a_b"}, {"a.*", "a.?"}, {"a*b", "a,b"}} {
		if id(pair[0]) == id(pair[1]) {
			t.Errorf("%s and %s have the same", pair[0], pair[1])
		}
	}
	if long := id(strings.Repeat("orders,", 50) + strings.Repeat("x", 248) + "*"); len(long) > 120 {
		t.Errorf("%d characters: %s", len(long), long)
	}
}
