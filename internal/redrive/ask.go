package redrive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

var errNoConsent = errors.New("nothing was sent")

// consent asks before all letters are sent, where no filter chooses some.
func (r *run) consent(found *summary) error {
	if r.narrow() || r.limit > 0 || r.yes {
		return nil
	}
	what := fmt.Sprintf("%s%s", letters(found.sendable()), targets(found))
	if r.ask == nil {
		return fmt.Errorf("no filter chooses among the letters of %s: to send all, %s, say -yes: %w", r.topic, what, errNoConsent)
	}
	yes, err := r.ask("Send all " + what + "? [y/N] ")
	if err == nil && !yes {
		err = errNoConsent
	}
	return err
}

// ask reads an answer from a terminal. It returns with ctx: the reading goroutine is
// left to the end of the process then.
func ask(ctx context.Context, in io.Reader, out io.Writer, question string) (bool, error) {
	fmt.Fprint(out, question)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(in).ReadString('\n') // at its end the answer is empty: no
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case text := <-answer:
		return text == "y" || text == "yes", nil
	case <-ctx.Done():
		fmt.Fprintln(out)
		return false, context.Cause(ctx)
	}
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
