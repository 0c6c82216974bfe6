package browsertest

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
)

//go:embed testdata/axe.min.js
var axe string

// browser is a tab that shows a page.
type browser struct {
	t   *testing.T
	ctx context.Context
	url string

	mu       sync.Mutex
	problems []string // what the console says
}

// chromium returns where the browser is. Without one the test is skipped, but in CI.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("there is no Chromium: .ci/run installs it")
	}
	t.Skip("there is no Chromium: install Debian's package chromium to run this test")
	return ""
}

// open serves a page and opens it.
func open(t *testing.T, options ackpolicyweb.Options) *browser {
	t.Helper()
	path := chromium(t)
	page := ackpolicyweb.New(options)
	mux := http.NewServeMux()
	mux.Handle("/ackpolicy/", page)
	server := httptest.NewUnstartedServer(mux)
	server.Config.RegisterOnShutdown(page.Close)
	server.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := server.Config.Shutdown(ctx); err != nil { // with pages open
			t.Error("Shutdown:", err)
		}
		server.Close()
	})
	ctx, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1280, 900))...)
	t.Cleanup(stop)
	ctx, _ = chromedp.NewContext(ctx)
	b := &browser{t: t, ctx: ctx, url: server.URL + "/ackpolicy/"}
	messages, read := chromedp.Console(ctx), make(chan struct{})
	go func() {
		defer close(read)
		for m := range messages {
			b.mu.Lock()
			if m.IsException() || m.Type == "error" || m.Type == "warning" {
				b.problems = append(b.problems, m.String()+" "+m.URL)
			}
			b.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Error(err)
		}
		<-read
		for _, p := range b.said() {
			t.Error("console: " + p)
		}
	})
	b.goes("")
	return b
}

func (b *browser) said() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.problems
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	run(b, chromedp.Steps(actions...))
}

// run returns what an action does.
func run[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// call calls a command of the DevTools protocol.
func call[P, R any](b *browser, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	v, err := chromedp.Call(b.ctx, command, params)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// eval returns the value of an expression.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	return run(b, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// text returns what the page says.
func (b *browser) text() string {
	b.t.Helper()
	return eval[string](b, "document.body.innerText")
}

// sees waits until the page says all of the texts, without being loaded again.
func (b *browser) sees(texts ...string) {
	b.t.Helper()
	said := ""
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		said = strings.Join(strings.Fields(b.text()), " ")
		missing := false
		for _, text := range texts {
			missing = missing || !strings.Contains(said, text)
		}
		if !missing {
			return
		}
	}
	b.t.Fatalf("the page does not say %q:\n%s", texts, said)
}

// goes opens another page, relative to the overview.
func (b *browser) goes(to string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.url + to))
}

// dark shows the page in dark or light colours.
func (b *browser) dark(on bool) {
	b.t.Helper()
	scheme := "light"
	if on {
		scheme = "dark"
	}
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
}

func (b *browser) size(width, height int64) {
	b.t.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 500,
	})
}

// accessible runs axe-core in both colour schemes.
func (b *browser) accessible() {
	b.t.Helper()
	for _, dark := range []bool{false, true} {
		b.dark(dark)
		eval[bool](b, "window.axe ? true : ((() => {"+axe+"})(), true)")
		found := eval[string](b, `axe.run(document).then(r => JSON.stringify(r.violations.map(v => v.id + ": " + v.help + ": " +
			v.nodes.slice(0, 3).map(n => n.html + " " + n.failureSummary).join(" | "))))`)
		var violations []string
		if err := json.Unmarshal([]byte(found), &violations); err != nil {
			b.t.Fatal(err)
		}
		for _, v := range violations {
			b.t.Errorf("axe-core, dark %v: %s", dark, v)
		}
	}
	b.dark(false)
}

// picture writes a picture of the page to the directory that ACKPOLICY_PICTURES names, if it does.
func (b *browser) picture(name string) {
	b.t.Helper()
	dir := os.Getenv("ACKPOLICY_PICTURES")
	if dir == "" {
		return
	}
	png := run(b, chromedp.CaptureScreenshot())
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)); err != nil {
		b.t.Fatal(err)
	}
}
