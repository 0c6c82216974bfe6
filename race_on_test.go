//go:build race

package ackpolicy_test

// slower is by how much the race detector slows down what a test measures.
const slower = 5
