package ackpolicyweb

import (
	"bytes"
	"encoding/json"
	"net/http"
	"time"
)

// patience is how long a browser may take to read an event.
const patience = 10 * time.Second

// event is what is sent to a page: what changes on it, and the time of that state.
type event struct {
	Time    string   `json:"t"`
	Every   int64    `json:"every"` // ms until the next one
	Changes []change `json:"set,omitempty"`
}

// live streams the changes of a page, as server-sent events, until the browser goes.
func (h *Handler) live(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would keep the events
	stream := http.NewResponseController(w)
	var shown node
	var b bytes.Buffer
	encode := json.NewEncoder(&b)
	encode.SetEscapeHTML(false)
	for {
		main, snap := h.render(q)
		every := h.refresh(snap.partitions)
		b.Reset()
		b.WriteString("data: ")
		if encode.Encode(event{clock(snap.at), every.Milliseconds(), main.changes(&shown, nil)}) != nil {
			return
		}
		b.WriteByte('\n')
		shown = main
		_ = stream.SetWriteDeadline(time.Now().Add(every + patience)) // not every ResponseWriter can
		if _, err := w.Write(b.Bytes()); err != nil || stream.Flush() != nil {
			return
		}
		timer := time.NewTimer(every)
		select {
		case <-timer.C:
		case <-h.closed:
			timer.Stop()
			return
		case <-r.Context().Done():
			timer.Stop()
			return
		}
	}
}
