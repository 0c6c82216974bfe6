package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/mattn/go-isatty"
)

// ask reads a reply from a terminal. It returns with ctx: the reading goroutine is
// left to the end of the process then.
func ask(ctx context.Context, in io.Reader, out io.Writer, question string) (bool, error) {
	fmt.Fprint(out, question)
	reply := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(in).ReadString('\n') // at its end the reply is empty: no
		reply <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case text := <-reply:
		return text == "y" || text == "yes", nil
	case <-ctx.Done():
		fmt.Fprintln(out)
		return false, context.Cause(ctx)
	}
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && isatty.IsTerminal(file.Fd())
}
