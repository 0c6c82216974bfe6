package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// disturb restarts members, one at a time, or two at once, until ctx ends.
func (s *soak) disturb(ctx context.Context, every time.Duration) {
	for {
		if !pause(ctx, time.Duration(s.random.ExpFloat64()*float64(every))) {
			return
		}
		n := 1 + s.random.IntN(2)*s.random.IntN(2)
		var group sync.WaitGroup
		for _, i := range s.random.Perm(len(s.members))[:min(n, len(s.members)-1)] {
			p, kill := s.members[i], s.kills && s.random.IntN(3) == 0
			away := time.Duration(s.random.IntN(3)*s.random.IntN(2000)) * time.Millisecond
			group.Go(func() {
				if kill {
					s.abort(p.kill())
				} else {
					s.abort(p.stop())
				}
				pause(ctx, away)
				s.abort(p.start())
			})
		}
		group.Wait()
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (s *soak) endMembers() {
	var group sync.WaitGroup
	for _, p := range s.members {
		group.Go(func() { s.abort(p.end()) })
	}
	group.Wait()
}

// soakProcess is a member's process.
type soakProcess struct {
	soak    *soak
	member  byte
	cmd     *exec.Cmd
	words   io.WriteCloser
	answers *bufio.Reader
}

// start begins a session, in a new process if the last one was killed.
func (p *soakProcess) start() error {
	if p.cmd == nil {
		spec := p.soak.spec
		spec.Member = p.member
		text, err := json.Marshal(spec)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), childEnv+"=soak", specEnv+"="+string(text))
		cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{p.soak.write}
		if p.words, err = cmd.StdinPipe(); err != nil {
			return err
		}
		answers, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		p.answers = bufio.NewReader(answers)
		if err := cmd.Start(); err != nil {
			return err
		}
		p.cmd = cmd
	}
	_, err := fmt.Fprintln(p.words, soakStart)
	return err
}

// stop ends the session gracefully; the process goes on.
func (p *soakProcess) stop() error {
	if _, err := fmt.Fprintln(p.words, soakStop); err != nil {
		return fmt.Errorf("member %d: %w", p.member, err)
	}
	if _, err := p.answers.ReadString('\n'); err != nil {
		return fmt.Errorf("member %d ended: %w", p.member, err)
	}
	p.soak.mu.Lock()
	defer p.soak.mu.Unlock()
	p.soak.restarts++
	return nil
}

func (p *soakProcess) kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = p.cmd.Wait() // "signal: killed"
	p.cmd = nil
	_, err := p.soak.write.Write(soakEvent{Kind: evKilled, Member: p.member}.encode())
	return err
}

// end has the process end gracefully, whatever its session.
func (p *soakProcess) end() error {
	if p.cmd == nil {
		return nil
	}
	_ = p.words.Close()
	late := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	_, _ = io.Copy(io.Discard, p.answers)
	if err := p.cmd.Wait(); err != nil {
		return errors.Join(fmt.Errorf("member %d", p.member), err)
	}
	return nil
}
