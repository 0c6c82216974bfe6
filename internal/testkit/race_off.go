//go:build !race

package testkit

// Slower is by how much the race detector slows down what a test measures.
const Slower = 1

// Race reports whether the race detector is on.
const Race = false
