// Observability is a service in trouble: one handler hangs, one record fails again and again, and the dead letter
// destination is down. It looks at itself as somebody on call would, by metrics, probes and the page, checks that
// all of them name the same records, fixes what can be fixed by hand, and checks that all of them say that it is over.
//
//	go -C examples/observability run .              # looks at itself, and ends
//	go -C examples/observability run . -serve :8080 # stays in trouble: open http://localhost:8080/ackpolicy/
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

func main() {
	serve := flag.String("serve", "", "an address: stay in trouble, and serve the page there")
	flag.Parse()
	if err := run(*serve); err != nil {
		fmt.Fprintf(os.Stderr, "\nobservability: %v\n", err)
		os.Exit(1)
	}
}

func run(serve string) (err error) {
	broker, err := brokertest.Start()
	if err != nil {
		return err
	}
	defer broker.Close()
	s, err := newService(broker.Addrs(), watermill.NewStdLogger(false, false))
	if err != nil {
		return err
	}
	stopped, err := s.start()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.router.Close(), <-stopped) }()

	address := serve
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: s.mux()}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		s.page.Close()
		if closeErr := server.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
		<-served
	}()
	if serve != "" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		fmt.Printf("\nthe page: http://%s/ackpolicy/, until you interrupt it\n", listener.Addr())
		<-ctx.Done()
		s.fix()
		return nil
	}
	return look(s, "http://"+listener.Addr().String())
}
