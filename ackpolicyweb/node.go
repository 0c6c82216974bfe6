package ackpolicyweb

import (
	"bytes"
	"strings"
)

// node is a part of a page: an element with its id, made of HTML alone, or of others between two
// pieces of HTML.
type node struct {
	id   string
	html string // or:
	open string
	kids []node
	end  string
}

// write writes the whole of it.
func (n *node) write(b *strings.Builder) {
	b.WriteString(n.html)
	b.WriteString(n.open)
	for i := range n.kids {
		n.kids[i].write(b)
	}
	b.WriteString(n.end)
}

func (n *node) String() string {
	var b strings.Builder
	n.write(&b)
	return b.String()
}

// change is an element to be replaced, by its id.
type change [2]string

// changes appends what makes a page that shows old show n: the smallest elements.
func (n *node) changes(old *node, to []change) []change {
	if n.html != old.html || n.open != old.open || n.end != old.end || len(n.kids) != len(old.kids) {
		return append(to, change{n.id, n.String()})
	}
	for i := range n.kids {
		if n.kids[i].id != old.kids[i].id {
			return append(to, change{n.id, n.String()})
		}
	}
	for i := range n.kids {
		to = n.kids[i].changes(&old.kids[i], to)
	}
	return to
}

// html renders a template. A fault of the template shows in its place.
func html(template string, of any) string {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, template, of); err != nil {
		return "<!-- " + strings.ReplaceAll(err.Error(), "-", "_") + " -->"
	}
	return b.String()
}
