// Package ackpolicyweb is a page that shows what a process does with its Kafka records: which one blocks which
// partition, since when, on which attempt and with which error, and what to do about it.
//
//	mux.Handle("/ackpolicy/", auth(ackpolicyweb.New(ackpolicyweb.Options{
//		Subscribers: []ackpolicyweb.Subscriber{subscriber},
//	})))
//
// It has no access control of its own, as net/http/pprof has none: put it behind that of the
// application, or on a port that only operators reach. It loads nothing from elsewhere, changes
// nothing unless Options.AllowActions is set, and shows no keys unless Options.ShowKeys is, and
// payloads never. What errors of handlers say is shown.
package ackpolicyweb

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"hash/fnv"
	"html/template"
	"net/http"
	"path"
	"sync"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Subscriber is what the page shows. *ackpolicy.Subscriber is one.
type Subscriber interface {
	State() ackpolicy.State
	Health() ackpolicy.Health
	Window(topic string, partition int32, most int) (records []ackpolicy.RecordState, sections []ackpolicy.Section, ok bool)
	Pause(by, topic string, partitions ...int32) error
	Resume(by, topic string, partitions ...int32) error
	Retry(by, topic string, partition int32, offset int64) error
	Reject(by, topic string, partition int32, offset int64, reason string) error
	SetLimits(by string, l ackpolicy.Limits) error
}

var _ Subscriber = (*ackpolicy.Subscriber)(nil)

// Options configure the page.
type Options struct {
	// Subscribers are the ones to show, in this order.
	Subscribers []Subscriber
	// AllowActions turns on the buttons that pause, resume, retry, reject and change limits. It returns who makes
	// the request, by the application's own authentication: the name goes into the log, into
	// Hooks.Acted and into the letter of a rejected record. An empty name refuses the request. nil:
	// the page changes nothing. Requests from other sites are always refused.
	AllowActions func(r *http.Request) (by string)
	// ShowKeys shows the keys of records. Without it a key has a code that is the same on the whole
	// page, and another one after a restart.
	ShowKeys bool
	// Timeline shows what was reported lately to its hooks. nil leaves it out.
	Timeline *Timeline
	// Refresh is how often the page changes; 0 is a second, and two beyond 100 partitions.
	Refresh time.Duration
}

// Handler is the page.
type Handler struct {
	options Options
	secret  []byte // of the codes of keys
	origin  *http.CrossOriginProtection
	closed  chan struct{}
	close   sync.Once

	mu    sync.Mutex
	last  *snapshot
	views map[string]rendered // of the last overview, by filter
}

//go:embed assets
var assets embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{"button": newButton}).ParseFS(assets, "assets/*.html"))

// New returns the page. It is served at whatever path ends with a slash, also behind http.StripPrefix.
func New(options Options) *Handler {
	h := &Handler{
		options: options, secret: make([]byte, 16), origin: http.NewCrossOriginProtection(),
		closed: make(chan struct{}), views: map[string]rendered{},
	}
	_, _ = rand.Read(h.secret) // it never fails
	return h
}

// Close ends the streams of open pages, which http.Server.Shutdown would wait for: give it to
// http.Server.RegisterOnShutdown. The handler continues.
func (h *Handler) Close() { h.close.Do(func() { close(h.closed) }) }

// policy lets a page load what comes from this handler, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", policy)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Referrer-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cache-Control", "no-store")

	last := path.Base(r.URL.Path)
	if n := len(r.URL.Path); n == 0 || r.URL.Path[n-1] == '/' {
		last = ""
	}
	if last == "act" {
		h.act(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "Only GET here.", http.StatusMethodNotAllowed)
		return
	}
	switch last {
	case "", "partition":
		h.page(w, r)
	case "live":
		h.live(w, r)
	case "page.css", "page.js", "page.svg":
		asset(w, r, last)
	default:
		http.NotFound(w, r)
	}
}

// asset serves a file, which browsers keep as long as it is the same.
func asset(w http.ResponseWriter, r *http.Request, name string) {
	content, err := assets.ReadFile("assets/" + name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	sum := fnv.New64a()
	_, _ = sum.Write(content)
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum.Sum(nil))+`"`)
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
}

// page serves a whole page: the overview, or a partition.
func (h *Handler) page(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	main, snap := h.render(q)
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, "page", struct {
		Title, Live, Time string
		Main              template.HTML
	}{q.title(snap), "live?" + q.encode(), clock(snap.at), template.HTML(main.String())}); err != nil {
		http.Error(w, "The page cannot be rendered: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = b.WriteTo(w) // the browser has gone
}
