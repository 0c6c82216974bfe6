package chaos

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// exitPatience is how long a member may take to end: Close takes its drain and five seconds.
const exitPatience = drain + 15*time.Second

// process is a member.
type process struct {
	member int
	ledger *Ledger // the test's
	proxy  *Proxy
	cmd    *exec.Cmd
	log    *os.File
	stdin  io.WriteCloser
	stdout io.ReadCloser
	up     chan struct{} // it runs, or has ended
	exited chan struct{}
	err    error // after exited
}

func startProcess(spec Spec, member int, ledger *Ledger) (*process, error) {
	proxy, err := StartProxy()
	if err != nil {
		return nil, err
	}
	p := &process{member: member, ledger: ledger, proxy: proxy, up: make(chan struct{}), exited: make(chan struct{})}
	if err := p.start(Membership{Spec: spec, Member: member, Proxy: proxy.Addr()}); err != nil {
		_ = proxy.Close()
		return nil, err
	}
	go func() {
		defer close(p.exited)
		lines := bufio.NewReader(p.stdout)
		_, _ = lines.ReadString('\n')
		close(p.up)
		_, _ = io.Copy(io.Discard, lines)
		p.err = p.cmd.Wait()
		_ = p.stdin.Close()
		_ = p.log.Close()
		_ = proxy.Close()
	}()
	ledger.About(member, Started, "")
	return p, nil
}

func (p *process) start(m Membership) (err error) {
	if p.cmd, err = brokertest.Self(context.Background(), MemberEnv, m); err != nil {
		return err
	}
	if m.Output == ExactlyOnce {
		// sarama has a data race when a Produce fails (docs/design.md): the member's log has it, its exit code does not.
		p.cmd.Env = append(p.cmd.Env, "GORACE=exitcode=0")
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	if p.stdout, err = p.cmd.StdoutPipe(); err != nil {
		return err
	}
	p.log, err = os.Create(filepath.Join(m.Dir, fmt.Sprintf("member-%03d.log", m.Member)))
	if err != nil {
		return err
	}
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		_ = p.log.Close()
		return err
	}
	return nil
}

// end has it end as at a deploy, and returns when it is gone.
func (p *process) end(command string) {
	p.ledger.About(p.member, Closing, command)
	_, _ = fmt.Fprintln(p.stdin, command)
	select {
	case <-p.exited:
	case <-time.After(exitPatience):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // for its goroutines, in its log
		<-p.exited
		p.err = fmt.Errorf("it did not end within %v: %w", exitPatience, p.err)
	}
	p.ledger.About(p.member, Exited, oneLine(p.err))
}

// kill kills it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
	p.ledger.About(p.member, Killed, oneLine(p.err))
}

// gone reports whether it has ended by itself.
func (p *process) gone() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// pause stops it for a while.
func (p *process) pause(length time.Duration) {
	p.ledger.About(p.member, Stopped, length.String())
	_ = p.cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(length)
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	p.ledger.About(p.member, Resumed, "")
}

// disturb has its network disturbed for a while.
func (p *process) disturb(kind string, length time.Duration, begin func()) {
	p.ledger.About(p.member, kind, length.String())
	begin()
	time.Sleep(length)
	p.proxy.Heal()
	p.ledger.About(p.member, Healed, "")
}
