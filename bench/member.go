package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// member is a process of a consumer group, the child of an experiment. It reports soakEvents.
type member struct {
	experiment string
	spec       any
	number     byte
	events     *os.File // its end of the pipe

	cmd    *exec.Cmd
	words  io.WriteCloser
	output *bufio.Reader
}

// Words of the parent on a member's standard input.
const memberStart, memberStop = "start", "stop"

// start begins a session, in a new process if the last one was killed.
func (p *member) start() error {
	if p.cmd == nil {
		text, err := json.Marshal(p.spec)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), childEnv+"="+p.experiment, specEnv+"="+string(text))
		cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{p.events}
		if p.words, err = cmd.StdinPipe(); err != nil {
			return err
		}
		output, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		p.output = bufio.NewReader(output)
		if err := cmd.Start(); err != nil {
			return err
		}
		p.cmd = cmd
	}
	_, err := fmt.Fprintln(p.words, memberStart)
	return err
}

// stop ends the session gracefully; the process continues.
func (p *member) stop() error {
	if _, err := fmt.Fprintln(p.words, memberStop); err != nil {
		return fmt.Errorf("member %d: %w", p.number, err)
	}
	if _, err := p.output.ReadString('\n'); err != nil {
		return fmt.Errorf("member %d ended: %w", p.number, err)
	}
	return nil
}

// kill ends the process at once. evKilled comes behind all that it reported.
func (p *member) kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = p.cmd.Wait() // "signal: killed"
	p.cmd = nil
	_, err := p.events.Write(soakEvent{Kind: evKilled, Member: p.number}.encode())
	return err
}

// end has the process end gracefully, whatever its session.
func (p *member) end() error {
	if p.cmd == nil {
		return nil
	}
	_ = p.words.Close()
	late := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	_, _ = io.Copy(io.Discard, p.output)
	if err := p.cmd.Wait(); err != nil {
		return errors.Join(fmt.Errorf("member %d", p.number), err)
	}
	return nil
}

// endAll has all processes end at once.
func endAll(members []*member) error {
	var group sync.WaitGroup
	errs := make([]error, len(members))
	for i, p := range members {
		group.Go(func() { errs[i] = p.end() })
	}
	group.Wait()
	return errors.Join(errs...)
}

// readEvents reads the parent's end of the pipe until it is closed.
func readEvents(pipe io.Reader, each func(soakEvent)) {
	in := bufio.NewReaderSize(pipe, 64<<10)
	b := make([]byte, soakEventSize)
	for {
		if _, err := io.ReadFull(in, b); err != nil {
			return
		}
		each(decodeSoakEvent(b))
	}
}
