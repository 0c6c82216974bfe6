package ackpolicyweb

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// mostReason is how long the reason of a reject may be, in bytes.
const mostReason = 1000

// act carries out what a button of the page asks for.
func (h *Handler) act(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		h.said(w, r, http.StatusMethodNotAllowed, "Only POST here.")
		return
	}
	if err := h.origin.Check(r); err != nil {
		h.said(w, r, http.StatusForbidden, "Refused: the request comes from another site.")
		return
	}
	if h.options.AllowActions == nil {
		h.said(w, r, http.StatusForbidden, "Refused: this page is read only. Options.AllowActions switches its buttons on.")
		return
	}
	by := h.options.AllowActions(r)
	if by == "" {
		h.said(w, r, http.StatusForbidden, "Refused: you may not act here.")
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		h.said(w, r, http.StatusUnsupportedMediaType, "Refused: want a form.")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
	if err := r.ParseForm(); err != nil {
		h.said(w, r, http.StatusBadRequest, "Refused: the form cannot be read.")
		return
	}
	done, err := h.do(by, r)
	h.forget()
	var bad badForm
	switch {
	case errors.As(err, &bad):
		h.said(w, r, http.StatusBadRequest, "Refused: "+string(bad)+".")
	case err != nil:
		h.said(w, r, http.StatusConflict, "Not done: "+textOf(err))
	default:
		h.said(w, r, http.StatusOK, done)
	}
}

type badForm string

func (b badForm) Error() string { return string(b) }

// do does it, and says what.
func (h *Handler) do(by string, r *http.Request) (done string, err error) {
	form := func(name string) string { return strings.TrimSpace(r.PostForm.Get(name)) }
	number := func(name string, bits int) (n int64) {
		if err == nil {
			if n, err = strconv.ParseInt(form(name), 10, bits); err != nil || n < 0 {
				err = badForm(name + ": want a number")
			}
		}
		return n
	}
	of, topic, do := number("subscriber", 31), form("topic"), form("do")
	var partitions []int32
	if do == "retry" || do == "reject" || form("partition") != "" {
		partitions = append(partitions, int32(number("partition", 32)))
	}
	var offset int64
	if do == "retry" || do == "reject" {
		offset = number("offset", 64)
	}
	switch {
	case err != nil:
		return "", err
	case of >= int64(len(h.options.Subscribers)):
		return "", badForm("there is no such subscriber")
	}
	sub, what := h.options.Subscribers[of], "all partitions of "+topic
	if len(partitions) > 0 {
		what = place(topic, partitions[0])
	}
	switch do {
	case "pause":
		return fmt.Sprintf("Paused %s.", what), sub.Pause(by, topic, partitions...)
	case "resume":
		return fmt.Sprintf("Resumed %s.", what), sub.Resume(by, topic, partitions...)
	case "limit":
		limits, err := limitsOf(form("in_flight"), form("deliveries"), form("per_second"))
		if err != nil {
			return "", err
		}
		return "The limits are changed.", sub.SetLimits(by, limits)
	case "retry":
		return fmt.Sprintf("%s is delivered again now.", name(topic, partitions[0], offset)), sub.Retry(by, topic, partitions[0], offset)
	case "reject":
		reason := form("reason")
		switch {
		case reason == "":
			return "", badForm("give a reason: it goes into the log, and into the dead letter if there is one")
		case len(reason) > mostReason:
			return "", badForm("the reason is too long")
		}
		return fmt.Sprintf("%s is given up.", name(topic, partitions[0], offset)), sub.Reject(by, topic, partitions[0], offset, reason)
	}
	return "", badForm("there is no such action")
}

// limitsOf reads limits. An empty one is left as it is.
func limitsOf(inFlight, deliveries, perSecond string) (l ackpolicy.Limits, err error) {
	for _, f := range []struct {
		text string
		to   *int
	}{{inFlight, &l.MaxInFlight}, {deliveries, &l.MaxDeliveries}} {
		if f.text == "" {
			continue
		}
		if *f.to, err = strconv.Atoi(f.text); err != nil {
			return l, badForm("want numbers as limits")
		}
	}
	if perSecond != "" {
		if l.MaxPerSecond, err = strconv.ParseFloat(perSecond, 64); err != nil {
			return l, badForm("want numbers as limits")
		}
	}
	if l == (ackpolicy.Limits{}) {
		return l, badForm("give a limit")
	}
	return l, nil
}

// said writes the outcome of an action: a line of text for the script of the page, a page for a browser without it.
func (h *Handler) said(w http.ResponseWriter, r *http.Request, status int, text string) {
	if r.Header.Get("Accept") == "text/plain" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text)) // the browser has gone
		return
	}
	back := "./"
	if topic := r.PostForm.Get("topic"); topic != "" && r.PostForm.Get("back") == "partition" {
		of, _ := strconv.Atoi(r.PostForm.Get("subscriber"))
		p, _ := strconv.ParseInt(r.PostForm.Get("partition"), 10, 32)
		back = link(of, topic, int32(p), -1)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(html("said", struct{ Text, Back string }{text, back})))
}
