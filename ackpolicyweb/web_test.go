package ackpolicyweb_test

import (
	"errors"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
)

var tags = regexp.MustCompile(`<[^>]*>`)

// text returns what one reads on a page.
func text(page string) string {
	return strings.Join(strings.Fields(html.UnescapeString(tags.ReplaceAllString(page, ""))), " ")
}

// want checks that a page says all of the texts, or has them in its source.
func want(t *testing.T, page string, texts ...string) {
	t.Helper()
	said := text(page)
	for _, text := range texts {
		if !strings.Contains(said, text) && !strings.Contains(page, text) {
			t.Errorf("the page does not say %q:\n%.3000s", text, said)
		}
	}
}

// wantNone checks that a page has none of the texts.
func wantNone(t *testing.T, page string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(page, text) {
			t.Errorf("the page says %q", text)
		}
	}
}

// The overview and the partition's page name the record that holds a partition: by the same name,
// with attempt, error, next delivery and what waits behind it.
func TestHeldRecord(t *testing.T) {
	f := newFake("orders", 4)
	queued := ackpolicy.RecordState{Offset: 1019, Key: []byte("ada"), Status: ackpolicy.RecordQueued, Since: time.Now()}
	f.hold(3, poison(1017, 5, "provider: 503"), queued, inFlight(1020, 0))
	h := pageOf(f)
	want(t, get(t, h, "/"), "1 thing needs attention. Held: orders/3@1017.", "5 deliveries have not settled it", "attempt 5", "provider: 503",
		"next delivery in", "1 record of the partition waits", "handler charge", "at least once")
	partition := get(t, h, "/partition?subscriber=0&topic=orders&partition=3")
	want(t, partition, "orders/3@1017 holds the partition", "Deliveries that did not settle it", "(1 more)", "provider: 503",
		"What waits for what", "@1019", `<path class="k-nacked"`)
	want(t, get(t, h, "/partition?subscriber=0&topic=orders&partition=3&offset=1020"), `orders/3@1020</span></h2>`, "in flight for")
	want(t, get(t, h, "/partition?subscriber=0&topic=orders&partition=3&offset=1018"), "It is settled.")
	f.hold(3)
	time.Sleep(10 * time.Millisecond) // a page is as old as Options.Refresh
	want(t, get(t, h, "/"), "Nothing is held, blocked or failing.")
}

// Each kind of trouble is shown, with the record or the partitions that it is about, and an advice.
func TestTroubles(t *testing.T) {
	ago := time.Now().Add(-2 * time.Minute)
	of := func(status ackpolicy.RecordStatus) ackpolicy.RecordState {
		return ackpolicy.RecordState{Offset: 1001, Status: status, Since: ago, Attempt: 1}
	}
	sub := func(f *fake) *ackpolicy.SubscriptionState { return &f.state.Subscriptions[0] }
	for name, c := range map[string]struct {
		change func(*fake)
		want   []string
	}{
		"a slow handler": {func(f *fake) {
			r := of(ackpolicy.RecordInFlight)
			f.hold(1, r)
			sub(f).Partitions[1].Slow, sub(f).Partitions[1].SlowHandlers = &r, 3
		}, []string{"Slow handler: orders/1@1001", "for 2 min", "2 others are in the same state", "goroutine dump"}},
		"a pending record": {func(f *fake) { f.hold(1, of(ackpolicy.RecordPending)) },
			[]string{"Pending: orders/1@1001", "returned without settling it", "policy Manual"}},
		"a letter": {func(f *fake) { f.hold(1, of(ackpolicy.RecordRejecting)) },
			[]string{"Dead letter: orders/1@1001", "its dead letter is not stored yet"}},
		"a commit to confirm": {func(f *fake) { f.hold(1, of(ackpolicy.RecordConfirming)) },
			[]string{"Confirming: orders/1@1001", "its commit is not confirmed yet"}},
		"Kafka": {func(f *fake) {
			sub(f).Failing = []ackpolicy.Failure{{Symptom: "fetching", Text: "Cannot fetch from Kafka", Partitions: []int32{1, 2, 0}, Since: ago, Err: errors.New("no leader")}}
		}, []string{"Kafka: orders", "Cannot fetch from Kafka.", "partitions 0–2", "no leader", "Look at the leaders"}},
		"no assignment": {func(f *fake) { sub(f).Consuming, sub(f).Since = false, ago },
			[]string{"No assignment: orders", "for 2 min", "--describe --members"}},
		"commits": {func(f *fake) { sub(f).Partitions[2].CommitErr = errors.New("not coordinator") },
			[]string{"Commit: orders", "partitions 2", "not coordinator", "coordinator"}},
		"a bound": {func(f *fake) {
			f.hold(1, of(ackpolicy.RecordPending))
			sub(f).Partitions[1].Blocked = true
		}, []string{"Bound reached: orders/1", "MaxUncommitted (100,000) is reached: nothing more of the partition is handed out before orders/1@1001 is settled."}},
		"memory": {func(f *fake) { sub(f).Partitions[1].Paused = []string{"MaxBufferedBytes is reached"} },
			[]string{"Memory: orders", "partitions 1", "MaxBufferedBytes"}},
		"a broken batch": {func(f *fake) { sub(f).Partitions[1].Undecodable = true },
			[]string{"Broken batch: orders/1@1000", "cannot be decoded"}},
		"a pause": {func(f *fake) { sub(f).Partitions[1].Held = true },
			[]string{"Nothing is held, blocked or failing. 1 partition is paused.", `<span class="kind">Paused</span>`, "orders/1", "Somebody paused it"}},
		"no room": {func(f *fake) { sub(f).Partitions[1].Unmarked = 7 },
			[]string{"7 settled records would come again after a restart", "partitions 1"}},
		"closing": {func(f *fake) { f.state.Closing = true }, []string{"The subscriber is closing"}},
		"an end": {func(f *fake) {
			f.health.Problems = []ackpolicy.Problem{{Code: ackpolicy.ProblemEnded, Topic: "orders", Partition: -1, Offset: -1, Since: ago, Text: "the subscription has ended"}}
		}, []string{"Ended: orders", "until the process is started again"}},
		"no progress": {func(f *fake) {
			f.hold(1, of(ackpolicy.RecordQueued))
			f.health.Problems = []ackpolicy.Problem{{Code: ackpolicy.ProblemNoProgress, Topic: "orders", Partition: 1, Offset: 1001, Since: ago, Text: "1 records wait"}}
		}, []string{"No progress: orders/1@1001", "MaxInFlightTotal"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake("orders", 3)
			c.change(f)
			h := pageOf(f)
			want(t, get(t, h, "/"), c.want...)
			get(t, h, "/partition?subscriber=0&topic=orders&partition=1")
		})
	}
}

// What comes from records and errors is text, whatever it holds.
func TestHostileTexts(t *testing.T) {
	const evil = `</script><script>alert(1)</script>"'><img src=x onerror=alert(2)>` + "\u202e\x00\xff{{.}}"
	f := newFake(evil, 2)
	f.state.ConsumerGroup, f.state.Guarantees = evil, evil
	f.state.Subscriptions[0].Handler, f.state.Subscriptions[0].MemberID = evil, evil
	f.state.Subscriptions[0].Failing = []ackpolicy.Failure{{Symptom: evil, Text: evil, Err: errors.New(evil)}}
	f.state.Subscriptions[0].Partitions[0].Paused = []string{evil}
	r := poison(1001, 3, evil)
	r.Key, r.Rejected = []byte(evil), errors.New(evil)
	f.hold(1, r, ackpolicy.RecordState{Offset: 1002, Key: []byte(evil), Status: ackpolicy.RecordQueued})
	h := pageOf(f, acting, func(o *ackpolicyweb.Options) { o.ShowKeys = true })
	for _, target := range []string{
		"/", "/?show=" + url.QueryEscape(evil), "/partition?subscriber=0&partition=1&topic=" + url.QueryEscape(evil), "/partition?subscriber=9&partition=1&topic=" + url.QueryEscape(evil),
	} {
		page := get(t, h, target)
		wantNone(t, page, "<script>alert", "<img", "\x00", `"'>`, "javascript:")
		wantNone(t, text(page), "\u202e", "\xff")
		want(t, page, "&lt;script&gt;alert(1)")
	}
}

type panicking struct{}

func (panicking) Error() string { panic("boom") }

// An error of the application whose method panics costs its own text.
func TestErrorThatPanics(t *testing.T) {
	f := newFake("orders", 1)
	r := poison(1001, 3, "x")
	r.LastErr = panicking{}
	f.hold(0, r)
	want(t, get(t, pageOf(f), "/"), "panicked: boom")
}

// Without ShowKeys a page has a code for each key.
func TestKeysAreHidden(t *testing.T) {
	f := newFake("orders", 1)
	r := poison(1001, 3, "x")
	r.Key = []byte("ada@example.com")
	f.hold(0, r, ackpolicy.RecordState{Offset: 1002, Key: r.Key, Status: ackpolicy.RecordQueued})
	const partition = "/partition?subscriber=0&topic=orders&partition=0"
	hidden, shown := pageOf(f), pageOf(f, func(o *ackpolicyweb.Options) { o.ShowKeys = true })
	for _, target := range []string{"/", partition} {
		wantNone(t, get(t, hidden, target), "ada@", "example.com")
		want(t, get(t, shown, target), "ada@example.com")
	}
	_, code, _ := strings.Cut(get(t, hidden, partition), "key ")
	if code = code[:8]; strings.Trim(code, "0123456789abcdef") != "" || strings.Count(get(t, hidden, partition), code) < 3 {
		t.Errorf("a key has no code: %q", code)
	}
	wantNone(t, get(t, pageOf(f), partition), code) // another page, another secret
}

// Nothing is served that loads from elsewhere, can be framed or is kept.
func TestHeaders(t *testing.T) {
	h := pageOf(newFake("orders", 1))
	for _, target := range []string{"/", "/page.css", "/page.js", "/page.svg", "/ackpolicy/", "/nothing", "/act"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
		policy := w.Header().Get("Content-Security-Policy")
		want(t, policy, "default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'")
		wantNone(t, policy, "unsafe", "*", "http", "data:")
		if w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: %v", target, w.Header())
		}
		if code := map[string]int{"/nothing": 404, "/act": 405}[target]; code != 0 && w.Code != code {
			t.Errorf("%s: %d", target, w.Code)
		}
		wantNone(t, strings.ReplaceAll(w.Body.String(), `xmlns="http://www.w3.org/2000/svg"`, ""), "http://", "https://", "style=", "onclick", "<script>", "<style")
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST of a page: %d", w.Code)
	}
}

// A page of nothing says so.
func TestNoSubscriber(t *testing.T) {
	want(t, get(t, ackpolicyweb.New(ackpolicyweb.Options{}), "/"), "<h1>no subscriber</h1>", "Nothing is subscribed to.")
}

// A filter shows the partitions it names, and says how many it leaves out.
func TestFilters(t *testing.T) {
	f := newFake("orders", 5)
	f.hold(3, poison(1017, 5, "x"))
	f.hold(4, inFlight(1001, 0))
	h := pageOf(f)
	for show, rows := range map[string]int{"": 5, "work": 2, "trouble": 1} {
		page := get(t, h, "/?show="+show)
		if n := strings.Count(page, "<tr id=\"r-"); n != rows {
			t.Errorf("show=%s: %d rows", show, n)
		}
		if show != "" {
			want(t, page, "of 5 partitions are not shown")
		}
	}
	want(t, get(t, h, "/"), `all <span class="n">5</span>`, `with work left <span class="n">2</span>`, `in trouble <span class="n">1</span>`)
}
