package ackpolicyweb_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
)

func form(do string, more ...string) url.Values {
	v := url.Values{"do": {do}, "subscriber": {"0"}, "topic": {"orders"}}
	for i := 0; i < len(more); i += 2 {
		v.Set(more[i], more[i+1])
	}
	return v
}

var sameOrigin = map[string]string{"Sec-Fetch-Site": "same-origin", "Accept": "text/plain"}

// The page has no buttons, and refuses what they would send, unless they are switched on.
func TestReadOnlyByDefault(t *testing.T) {
	f := newFake("orders", 1)
	f.hold(0, poison(1001, 5, "x"))
	h := pageOf(f)
	for _, target := range []string{"/", "/partition?subscriber=0&topic=orders&partition=0"} {
		wantNone(t, get(t, h, target), "<form", `action="act"`)
	}
	for _, do := range []string{"pause", "resume", "retry", "reject", "limit"} {
		code, body := post(h, form(do, "partition", "0", "offset", "1001", "reason", "x"), sameOrigin)
		if code != http.StatusForbidden || !strings.Contains(body, "read only") {
			t.Errorf("%s: %d %s", do, code, body)
		}
	}
	if did := f.actions(); len(did) > 0 {
		t.Errorf("done: %v", did)
	}
}

// A request from another site is refused, whoever makes it.
func TestCrossSiteIsRefused(t *testing.T) {
	f := newFake("orders", 1)
	for name, h := range map[string]http.Handler{"acting": pageOf(f, acting), "read only": pageOf(f)} {
		for _, header := range []map[string]string{
			{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"},
			{"Origin": "http://example.com:81"},
		} {
			code, body := post(h, form("pause"), header)
			if code != http.StatusForbidden || !strings.Contains(body, "another site") {
				t.Errorf("%s, %v: %d %s", name, header, code, body)
			}
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/act?"+form("pause").Encode(), nil)
	w := httptest.NewRecorder()
	pageOf(f, acting).ServeHTTP(w, r)
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
	if did := f.actions(); len(did) > 0 {
		t.Errorf("done: %v", did)
	}
}

// What the buttons send is done, in the name that the application gives.
func TestActions(t *testing.T) {
	f := newFake("orders", 4)
	f.hold(3, poison(1017, 5, "x"))
	h := pageOf(f, acting)
	page := get(t, h, "/")
	want(t, page, `id="t-0-3-1017-held-retry"`, "Give orders/3@1017 up", "it goes into the log. There is no dead letter destination")
	f.set(func(f *fake) { f.state.Subscriptions[0].DeadLetter = true })
	want(t, get(t, pageOf(f, acting), "/"), "it goes into the log and the dead letter", "it becomes a dead letter")
	for _, c := range []struct {
		form url.Values
		said string
	}{
		{form("pause"), "Paused all partitions of orders."},
		{form("resume", "partition", "3"), "Resumed orders/3."},
		{form("retry", "partition", "3", "offset", "1017"), "orders/3@1017 is delivered again now."},
		{form("reject", "partition", "3", "offset", "1017", "reason", "no such order"), "orders/3@1017 is given up."},
		{form("limit", "in_flight", "8", "deliveries", "", "per_second", "2.5"), "The limits are changed."},
	} {
		if code, body := post(h, c.form, sameOrigin); code != http.StatusOK || body != c.said {
			t.Errorf("%v: %d %s", c.form, code, body)
		}
	}
	want := []string{"ada pause orders []", "ada resume orders [3]", "ada retry orders/3@1017", "ada reject orders/3@1017: no such order", "ada limits 8 in flight, 0 deliveries, 2.5 per second"}
	if did := f.actions(); !slices.Equal(did, want) {
		t.Errorf("done: %q, want %q", did, want)
	}
	f.set(func(f *fake) { f.err = errors.New("offset 1017 is settled") })
	if code, body := post(h, form("retry", "partition", "3", "offset", "1017"), sameOrigin); code != http.StatusConflict || body != "Not done: offset 1017 is settled" {
		t.Errorf("a refusal of the Subscriber: %d %s", code, body)
	}
}

// Without script the response is a page that leads back.
func TestActionsWithoutScript(t *testing.T) {
	h := pageOf(newFake("orders", 4), acting)
	code, body := post(h, form("pause", "partition", "3", "back", "partition"), nil)
	if code != http.StatusOK || !strings.Contains(body, "<h1>Paused orders/3.</h1>") || !strings.Contains(body, `href="partition?partition=3&amp;topic=orders"`) {
		t.Errorf("%d %s", code, body)
	}
}

// What is not a form of the page changes nothing.
func TestBadForms(t *testing.T) {
	f := newFake("orders", 4)
	h := pageOf(f, acting)
	for name, v := range map[string]url.Values{
		"no action": form("drop"), "no partition": form("retry", "offset", "1"), "no offset": form("retry", "partition", "1"),
		"no number": form("reject", "partition", "x", "offset", "1", "reason", "x"), "no reason": form("reject", "partition", "1", "offset", "1", "reason", " "),
		"a long reason": form("reject", "partition", "1", "offset", "1", "reason", strings.Repeat("x", 1001)), "no such subscriber": form("pause", "subscriber", "7"),
		"no limit": form("limit"), "a limit that is no number": form("limit", "in_flight", "x"), "a pace that is none": form("limit", "per_second", "fast"),
		"negative": form("pause", "subscriber", "-1"), "a flood": form("pause", "x", strings.Repeat("x", 20<<10)),
	} {
		if code, body := post(h, v, sameOrigin); code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
	if code, _ := post(h, form("pause"), map[string]string{"Content-Type": "text/plain"}); code != http.StatusUnsupportedMediaType {
		t.Errorf("text: %d", code)
	}
	nobody := pageOf(f, func(o *ackpolicyweb.Options) { o.AllowActions = func(*http.Request) string { return "" } })
	if code, body := post(nobody, form("pause"), sameOrigin); code != http.StatusForbidden || !strings.Contains(body, "you may not") {
		t.Errorf("nobody: %d %s", code, body)
	}
	if did := f.actions(); len(did) > 0 {
		t.Errorf("done: %v", did)
	}
}
