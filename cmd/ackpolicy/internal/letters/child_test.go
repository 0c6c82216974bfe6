package letters

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// child is the command in a separate process.
type child struct {
	t        testing.TB
	cmd      *exec.Cmd
	out, err bytes.Buffer
}

func (b *bed) start(args ...string) *child {
	b.t.Helper()
	text, err := json.Marshal(b.args(args))
	testkit.Check(b.t, err)
	executable, err := os.Executable()
	testkit.Check(b.t, err)
	c := &child{t: b.t, cmd: exec.Command(executable)}
	c.cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.err
	testkit.Check(b.t, c.cmd.Start())
	b.t.Cleanup(func() { // if the test failed meanwhile
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait()
			b.t.Logf("it had come to this: %s%s", c.out.String(), c.err.String())
		}
	})
	return c
}

func (c *child) signal(s os.Signal) {
	c.t.Helper()
	testkit.Check(c.t, c.cmd.Process.Signal(s))
}

// wait waits for the end. The exit code of one that was killed is -1.
func (c *child) wait() result {
	_ = c.cmd.Wait()
	return result{Args: c.cmd.Args, Code: c.cmd.ProcessState.ExitCode(), Out: c.out.String(), Err: c.err.String()}
}

func (c *child) want(code int, texts ...string) {
	c.t.Helper()
	c.wait().Want(c.t, code, texts...)
}

// originEnd is how far the origin's partition has come.
func (b *bed) originEnd(partition int32) int64 {
	b.t.Helper()
	end, err := brokertest.EndOffset(b.broker.Addrs(), b.origin, partition)
	testkit.Check(b.t, err)
	return end
}

func (b *bed) waitOrigin(partition int32, end int64) {
	b.t.Helper()
	testkit.Eventually(b.t, "letters on their way back", func() bool { return b.originEnd(partition) >= end })
}
