package brokertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// Self returns the command that runs this program once more, as another process, which finds spec as JSON in an
// environment variable.
func Self(ctx context.Context, env string, spec any) (*exec.Cmd, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	executable, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, executable)
	cmd.Env = append(os.Environ(), env+"="+string(text))
	return cmd, nil
}

// RunUntil runs a Self until await returns. Then it kills it, or ends its input, as a deploy would stop it, and waits for
// its end.
func RunUntil(ctx context.Context, env string, spec any, await func() error, kill bool) error {
	cmd, err := Self(ctx, env, spec)
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = await()
	if kill || err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	_ = stdin.Close()
	return cmd.Wait()
}

// WaitCommittedAll waits until the offsets that a group has committed of a topic that began at 0 are so many in all.
func WaitCommittedAll(ctx context.Context, addrs []string, group, topic string, want int64) error {
	for {
		committed, err := CommittedAll(addrs, group, topic)
		if err != nil {
			return err
		}
		sum := int64(0)
		for _, offset := range committed {
			sum += offset
		}
		if sum >= want {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), fmt.Errorf("group %s, %s: %d of %d records are committed", group, topic, sum, want))
		case <-time.After(pollInterval):
		}
	}
}
