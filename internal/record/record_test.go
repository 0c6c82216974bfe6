package record

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"testing"
)

func TestCopies(t *testing.T) {
	var c Copies
	if c.Bytes(nil) != nil {
		t.Error("the copy of nil is not nil")
	}
	if b := c.Bytes([]byte{}); b == nil || len(b) != 0 {
		t.Errorf("the copy of an empty slice is %v", b)
	}
	var all [][]byte
	size := func(i int) int { return 1 + i*7%(2*mostShared) }
	for i := range 500 {
		all = append(all, c.Bytes(bytes.Repeat([]byte{byte(i)}, size(i))))
	}
	for i, b := range all {
		if !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, size(i))) {
			t.Fatalf("copy %d is %v", i, b)
		}
		_ = append(b, 1, 2, 3)
		for k := range b {
			b[k] = 0xff
		}
	}
}

// What it costs to give each delivery bytes of its own, and the ways that were turned down: an allocation
// for each copy, and to hash what is handed out.
func BenchmarkCopies(b *testing.B) {
	for _, size := range []int{100, 1000, 10_000, 1_000_000} {
		value, kept := make([]byte, size), make([][]byte, 256)
		b.Run(fmt.Sprint("copies/", size), func(b *testing.B) {
			var c Copies
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				kept[i%len(kept)] = c.Bytes(value)
			}
		})
		b.Run(fmt.Sprint("clone/", size), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				kept[i%len(kept)] = bytes.Clone(value)
			}
		})
		b.Run(fmt.Sprint("hash/", size), func(b *testing.B) {
			seed := maphash.MakeSeed()
			for b.Loop() {
				_ = maphash.Bytes(seed, value)
			}
		})
	}
}
