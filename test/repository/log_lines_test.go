// Package repository_test checks that the pages say what the source does, and what the library imports.
package repository_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// logged is a log line in the source: its text, with … for what is known at run time only.
type logged struct{ level, text, at string }

// Each line that the library writes at error or info level has its row on the page, and each row its line.
func TestEveryLogLineIsDocumented(t *testing.T) {
	t.Chdir("../..")
	rows := logRows(t)
	lines := logLines(t)
	for _, l := range lines {
		if !slices.ContainsFunc(rows, func(r logged) bool { return r.level == l.level && strings.HasPrefix(l.text, r.text) }) {
			t.Errorf("docs/operations.md has no row at level %s for %q (%s)", l.level, l.text, l.at)
		}
	}
	for _, r := range rows {
		if !slices.ContainsFunc(lines, func(l logged) bool { return r.level == l.level && strings.HasPrefix(l.text, r.text) }) {
			t.Errorf("docs/operations.md has a row at level %s for %q, which is written nowhere", r.level, r.text)
		}
	}
	if len(lines) < 20 {
		t.Errorf("only %d lines found: %v", len(lines), lines)
	}
}

// logRows reads the rows: a line, or several with a semicolon between them, and the level.
func logRows(t testing.TB) (rows []logged) {
	page, err := os.ReadFile("docs/operations.md")
	testkit.Check(t, err)
	_, section, _ := strings.Cut(string(page), "\n## What the log says\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for row := range strings.Lines(section) {
		cells := strings.Split(row, "|")
		if len(cells) != 6 || strings.Contains(row, "Watermill's own") {
			continue
		}
		if level := strings.TrimSpace(cells[2]); level == "error" || level == "info" {
			for text := range strings.SplitSeq(strings.TrimSpace(cells[1]), "; ") {
				rows = append(rows, logged{level: level, text: text})
			}
		}
	}
	return rows
}

// logLines reads the source of the library, of which some packages are for tests and commands.
func logLines(t testing.TB) (lines []logged) {
	others := []string{"internal/brokertest", "internal/chaos", "internal/scram", "internal/testkit"}
	dirs, err := filepath.Glob("internal/*")
	testkit.Check(t, err)
	for _, dir := range append(dirs, ".") {
		files, err := filepath.Glob(dir + "/*.go")
		testkit.Check(t, err)
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") && !slices.Contains(others, dir) {
				lines = append(lines, logLinesOf(t, file)...)
			}
		}
	}
	return lines
}

func logLinesOf(t testing.TB, name string) (lines []logged) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, nil, 0)
	testkit.Check(t, err)
	named := map[string][]ast.Expr{} // what is assigned to a name somewhere in the file
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for i, to := range n.Lhs {
				if id, ok := to.(*ast.Ident); ok && len(n.Rhs) == len(n.Lhs) && n.Tok != token.ADD_ASSIGN {
					named[id.Name] = append(named[id.Name], n.Rhs[i])
				}
			}
		case *ast.ValueSpec:
			for i, value := range n.Values {
				named[n.Names[i].Name] = append(named[n.Names[i].Name], value)
			}
		}
		return true
	})
	add := func(level string, message ast.Expr) {
		at := files.Position(message.Pos()).String()
		for _, text := range patterns(message, named) {
			if strings.HasPrefix(text, "…") {
				t.Errorf("%s: begin the message with a literal", at)
				continue
			}
			lines = append(lines, logged{level, text, at})
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit: // what internal/consumer's health writes
			if level, message := healthsOwn(n); message != nil && strings.HasPrefix(name, "internal/consumer") {
				add(level, message)
			}
		case *ast.AssignStmt: // n.text, n.err = …
			if to, ok := n.Lhs[0].(*ast.SelectorExpr); ok && to.Sel.Name == "text" && len(n.Lhs) == len(n.Rhs) && strings.HasPrefix(name, "internal/consumer") {
				add([]string{"", "info", "error"}[len(n.Lhs)], n.Rhs[0])
			}
		case *ast.CallExpr:
			if level, ok := levelOf(n); ok {
				first := n.Args[0]
				for sum, ok := first.(*ast.BinaryExpr); ok; sum, ok = first.(*ast.BinaryExpr) {
					first = sum.X
				}
				if _, healths := first.(*ast.SelectorExpr); !healths {
					add(level, n.Args[0])
				}
			}
		}
		return true
	})
	return lines
}

// healthsOwn returns the text of a failure, a symptom or a note, which is an error or has no err.
func healthsOwn(c *ast.CompositeLit) (level string, message ast.Expr) {
	level = "error"
	if of, ok := c.Type.(*ast.Ident); ok && of.Name == "note" {
		level = "info"
	}
	for _, e := range c.Elts {
		if field, ok := e.(*ast.KeyValueExpr); ok {
			if key, ok := field.Key.(*ast.Ident); ok && key.Name == "text" {
				message = field.Value
			} else if ok && key.Name == "err" {
				level = "error"
			}
		}
	}
	return level, message
}

// levelOf reports whether a call writes to a logger at error or info level.
func levelOf(call *ast.CallExpr) (level string, ok bool) {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) < 2 || method.Sel.Name != "Error" && method.Sel.Name != "Info" {
		return "", false
	}
	receiver := method.X
	if made, ok := receiver.(*ast.CallExpr); ok {
		receiver = made.Fun
	}
	name := ""
	switch receiver := receiver.(type) {
	case *ast.Ident:
		name = receiver.Name
	case *ast.SelectorExpr:
		name = receiver.Sel.Name
	}
	return strings.ToLower(method.Sel.Name), strings.EqualFold(strings.TrimSuffix(name, "Of"), "logger") || name == "log"
}

// patterns are the texts that a string expression may have.
func patterns(e ast.Expr, named map[string][]ast.Expr) []string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil {
			return []string{text}
		}
	case *ast.BinaryExpr:
		var texts []string
		for _, x := range patterns(e.X, named) {
			for _, y := range patterns(e.Y, named) {
				texts = append(texts, x+y)
			}
		}
		return texts
	case *ast.ParenExpr:
		return patterns(e.X, named)
	case *ast.Ident:
		var texts []string
		for _, value := range named[e.Name] {
			texts = append(texts, patterns(value, nil)...)
		}
		if texts != nil {
			return texts
		}
	}
	return []string{"…"}
}
