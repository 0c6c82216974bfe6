package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/liggitt/tabwriter"
)

// Table prints rows in columns, as kubectl does and with what it uses for that. The
// first rows decide how wide the columns are, so that a long table can be read while
// it comes.
type Table struct {
	w    *tabwriter.Writer
	rows int
}

// AlignedRows is how many rows are waited for until the columns' widths are fixed. Wider
// cells widen them later on.
const AlignedRows = 200

// NewTable returns a table. Flush ends it.
func NewTable(w io.Writer) *Table {
	return &Table{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.RememberWidths)}
}

// Row adds a row. Its cells must be clean: see [Clean].
func (t *Table) Row(cells ...string) error {
	if t.rows++; t.rows > AlignedRows {
		t.rows = 1
		if err := t.w.Flush(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(t.w, strings.Join(cells, "\t"))
	return err
}

// Flush prints the rows that wait.
func (t *Table) Flush() error { return t.w.Flush() }
