package ackpolicyweb_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
)

type event struct {
	Time  string      `json:"t"`
	Every int         `json:"every"`
	Set   [][2]string `json:"set"`
}

// stream opens the events of a page. They end with the test.
func stream(t *testing.T, h http.Handler, target string) (next func() event, ended <-chan struct{}) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if kind := response.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Fatalf("Content-Type: %s", kind)
	}
	events, end := make(chan event), make(chan struct{})
	go func() {
		defer close(end)
		lines := bufio.NewScanner(response.Body)
		lines.Buffer(nil, 8<<20)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var e event
				if err := json.Unmarshal([]byte(data), &e); err != nil {
					t.Error(err)
				}
				select {
				case events <- e:
				case <-ctx.Done():
				}
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = response.Body.Close()
		<-end
	})
	return func() event {
		t.Helper()
		select {
		case e := <-events:
			return e
		case <-ctx.Done():
			t.Fatal("no event")
			panic("unreachable")
		}
	}, end
}

// The first event has the whole page, and those that follow what has changed: of one partition
// among many its row, and the sums.
func TestEventsAreSmall(t *testing.T) {
	f := newFake("orders", 400)
	next, _ := stream(t, pageOf(f), "/live")
	if e := next(); len(e.Set) != 1 || e.Set[0][0] != "main" || !strings.Contains(e.Set[0][1], "orders/399") {
		t.Fatalf("the first event: %.300v", e)
	}
	f.hold(7, inFlight(1001, 0))
	changed := map[string]string{}
	for len(changed) < 3 {
		for _, c := range next().Set {
			changed[c[0]] = c[1]
		}
	}
	if len(changed) != 3 || !strings.Contains(changed["r-0-7"], "working") || changed["s-0-head"] == "" || changed["filter"] == "" {
		t.Errorf("changed: %v", changed)
	}
	f.hold(9, poison(1017, 5, "x"))
	for text := ""; !strings.Contains(text, "orders/9@1017"); {
		for _, c := range next().Set {
			if c[0] == "trouble" {
				text = c[1]
			} else if strings.Contains(c[1], "orders/11") {
				t.Errorf("%s has changed: %s", c[0], c[1])
			}
		}
	}
}

// The page of a partition follows it, also when it goes to another member.
func TestPartitionIsFollowed(t *testing.T) {
	f := newFake("orders", 4)
	f.hold(3, poison(1017, 5, "x"))
	next, _ := stream(t, pageOf(f), "/live?topic=orders&partition=3")
	want(t, next().Set[0][1], "orders/3@1017 holds the partition")
	f.set(func(f *fake) { f.state.Subscriptions[0].Partitions = f.state.Subscriptions[0].Partitions[:2] })
	for {
		if e := next(); len(e.Set) > 0 && strings.Contains(e.Set[0][1], "orders/3 is not assigned to this process now.") {
			return
		}
	}
}

// Close ends the streams.
func TestCloseEndsStreams(t *testing.T) {
	h := pageOf(newFake("orders", 4), func(o *ackpolicyweb.Options) { o.Refresh = time.Hour })
	next, ended := stream(t, h, "/live")
	next()
	h.Close()
	h.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the stream continues")
	}
}
