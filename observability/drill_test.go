package observability_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var drillAt = flag.String("drill", "", "the address at which TestDrill serves")

// TestDrill is for somebody who wants to practise: a service in trouble, and nobody says which. It serves the page, the
// probes, the metrics and the log; GET /solution says what it was, and ends the drill.
//
//	go -C observability test -run TestDrill -v -timeout 1h . -args -drill localhost:8080
func TestDrill(t *testing.T) {
	if *drillAt == "" {
		t.Skip("-drill has no address")
	}
	names := []string{
		"a handler hangs", "a handler hangs, and its partition waits", "a record fails each time", "dead letters are not stored",
		"MaxUncommitted is reached", "a partition is paused", "a broker is away", "a record was left unsettled",
	}
	name := names[rand.IntN(len(names))]
	prom := startPrometheus(t, time.Second, 1)
	f := newTroubled(t, prom)
	f.group, f.topic = "billing", "payments"
	f.partitions, f.handlerSlow = 4, 5*time.Second
	f.partition, f.offset = rand.Int32N(int32(f.partitions)), rand.Int64N(50)
	fix := sync.OnceFunc(func() { close(f.fixed) })
	t.Cleanup(fix)
	testkit.Check(t, brokertest.CreateTopic(f.broker.Addrs(), f.topic, int32(f.partitions)))
	repair := liveFaults[name].cause(f)

	mux, ended := http.NewServeMux(), make(chan struct{})
	page := ackpolicyweb.New(ackpolicyweb.Options{
		Subscribers: []ackpolicyweb.Subscriber{f.sub}, ShowKeys: true, AllowActions: func(*http.Request) string { return "you" },
	})
	defer page.Close()
	mux.Handle("/ackpolicy/", page)
	mux.Handle("/livez", f.sub.LivezHandler())
	mux.Handle("/readyz", f.sub.ReadyzHandler())
	mux.HandleFunc("/log", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.Join(f.Log.At("error", "info"), "\n"))
	})
	mux.HandleFunc("/alerts", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, prom.firing(f.group)) })
	end := sync.OnceFunc(func() { close(ended) })
	mux.HandleFunc("/solution", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s: %s/%d@%d\n", name, f.topic, f.partition, f.offset)
		end()
	})
	listener, err := net.Listen("tcp", *drillAt)
	testkit.Check(t, err)
	server := &http.Server{Handler: mux}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	defer serving.Wait()
	defer func() { _ = server.Shutdown(context.Background()) }()
	fmt.Printf("http://%s/ackpolicy/ /readyz /log /alerts; ackpolicy status --brokers %s --group %s; at the end /solution\n", listener.Addr(), strings.Join(f.broker.Addrs(), ","), f.group)
	<-ended
	fix()
	if repair != nil {
		repair()
	}
}
