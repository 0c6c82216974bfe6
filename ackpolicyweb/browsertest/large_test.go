package browsertest

import (
	"fmt"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/cdproto/systeminfo"
	"github.com/chromedp/chromedp"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// busy is a Subscriber of many partitions all of whose numbers change each time that it is asked.
type busy struct {
	*ackpolicy.Subscriber // for what is not asked of it
	partitions            int

	mu    sync.Mutex
	asked int64
}

func (b *busy) Health() ackpolicy.Health { return ackpolicy.Health{Live: true, Ready: true} }

func (b *busy) State() ackpolicy.State {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	now := time.Now()
	sub := ackpolicy.SubscriptionState{
		Topic: "orders", Handler: "charge", MemberID: "member-1", Generation: 4, Consuming: true, Since: now.Add(-time.Hour),
		MaxBufferedBytes: 64 << 20, MaxInFlight: 64, MaxUncommitted: 100_000,
	}
	for p := range b.partitions {
		first := b.asked*1000 + int64(p)
		sub.Partitions = append(sub.Partitions, ackpolicy.PartitionState{
			Partition: int32(p), Since: now.Add(-time.Hour), Moved: now, Watermark: first, Committed: first - 10, Next: first + 40, HighWatermark: first + 400,
			InFlight: 8, Queued: 12, Unsettled: 20, WorkLag: 380 + b.asked%7, CommittedLag: 410 + b.asked%11, LedgerRoom: 4096,
		})
	}
	return ackpolicy.State{ConsumerGroup: "billing", Ordering: ackpolicy.OrderByKey, Guarantees: "at least once", Subscriptions: []ackpolicy.SubscriptionState{sub}}
}

func (b *busy) Window(_ string, p int32, _ int) (records []ackpolicy.RecordState, sections []ackpolicy.Section, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := b.asked*1000 + int64(p)
	for i := range int64(20) {
		r := ackpolicy.RecordState{Offset: first + 2*i, Key: []byte("key " + strconv.FormatInt(i, 10)), Status: ackpolicy.RecordQueued, Since: time.Now()}
		if (i+b.asked)%5 < 2 {
			r.Status, r.Attempt = ackpolicy.RecordInFlight, 1
		}
		records = append(records, r)
	}
	return records, nil, true
}

// 400 partitions whose numbers all change cost the open page less than 100 ms of processor a refresh, and
// all of the browser's processes together, which have no GPU to paint with, less than a twentieth of a core.
// Rows that are not seen follow when they are.
func TestManyPartitions(t *testing.T) {
	b := open(t, ackpolicyweb.Options{Subscribers: []ackpolicyweb.Subscriber{&busy{partitions: 400}}})
	b.sees("orders/399")
	call(b, performance.Enable, performance.EnableParams{TimeDomain: performance.EnableTimeDomainThreadTicks})
	refreshed := func(times int) { // without asking again and again, which would cost more than the page
		eval[bool](b, fmt.Sprintf(`new Promise(done => {
			let left = %d;
			const seen = new MutationObserver(() => { if (--left === 0) { seen.disconnect(); done(true); } });
			seen.observe(document.getElementById("time"), {childList: true});
		})`, times))
	}
	refreshed(2)
	busyBefore, before, began := mainThread(b), cpu(b), time.Now()
	const refreshes = 8
	refreshed(refreshes)
	perRefresh := 1000 * (mainThread(b) - busyBefore) / refreshes
	share := 100 * (cpu(b) - before) / time.Since(began).Seconds()
	t.Logf("a refresh: %.0f ms of the page's thread; all of the browser: %.1f%% of a core", perRefresh, share)
	if perRefresh > 100 {
		t.Errorf("a refresh takes %.0f ms", perRefresh)
	}
	if share > 5 {
		t.Errorf("the browser uses %.1f%% of a core", share)
	}
	b.do(chromedp.ScrollIntoView("#r-0-399"))
	shown := `Number(document.querySelector("#r-0-399 td:last-child").textContent)`
	was := eval[int](b, shown)
	testkit.Eventually(t, "the last row to change", func() bool { return eval[int](b, shown) != was })
	b.accessible()
}

// mainThread returns the seconds of processor that the page's own thread has used.
func mainThread(b *browser) float64 {
	for _, m := range call(b, performance.GetMetrics, cdp.Empty{}).Metrics {
		if m.Name == "TaskDuration" {
			return m.Value
		}
	}
	b.t.Fatal("no TaskDuration")
	return 0
}

// cpu returns the seconds of processor that the browser's processes have used.
func cpu(b *browser) (sum float64) {
	info, err := chromedp.CallBrowser(b.ctx, systeminfo.GetProcessInfo, cdp.Empty{})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, p := range info.ProcessInfo {
		sum += p.CPUTime
	}
	return sum
}

// BenchmarkManyPartitions is what a refresh of 400 partitions, all of which changed, costs the service.
func BenchmarkManyPartitions(b *testing.B) {
	page := ackpolicyweb.New(ackpolicyweb.Options{Subscribers: []ackpolicyweb.Subscriber{&busy{partitions: 400}}, Refresh: 1})
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		page.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if !strings.Contains(w.Body.String(), "orders/399") {
			b.Fatal(w.Body)
		}
	}
}
