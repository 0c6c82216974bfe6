package ledger

import (
	"encoding/binary"
	"hash/crc32"
	"testing"
	"time"
)

// The numbers in a fingerprint are summed by hand; it is the CRC of their bytes nevertheless.
func TestFingerprintIsCRC32C(t *testing.T) {
	for _, n := range []uint64{0, 1, 1<<63 | 255, 0x0102030405060708} {
		h := Hash{crc: 0xdeadbeef}
		h.number(n)
		if want := crc32.Update(0xdeadbeef, castagnoli, binary.BigEndian.AppendUint64(nil, n)); h.crc != want {
			t.Errorf("%x: %x, not %x", n, h.crc, want)
		}
	}
}

func TestFingerprintDoesNotAllocate(t *testing.T) {
	at, key, value := time.UnixMilli(1), []byte("key"), []byte("value")
	if n := testing.AllocsPerRun(100, func() {
		var h Hash
		h.Bytes(key)
		h.Bytes(value)
		h.Fingerprint(7, at, key, value)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFingerprint(b *testing.B) {
	at, key, value := time.UnixMilli(1), []byte("key-12345"), make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		Hash{}.Fingerprint(7, at, key, value)
	}
}

func TestFingerprint(t *testing.T) {
	at := time.UnixMilli(1_800_000_000_000)
	seen := map[uint32]string{}
	add := func(name string, f uint32) {
		if other, ok := seen[f]; ok {
			t.Errorf("%s and %s have one fingerprint", name, other)
		}
		seen[f] = name
	}
	add("plain", Hash{}.Fingerprint(5, at, []byte("k"), []byte("v")))
	add("offset", Hash{}.Fingerprint(6, at, []byte("k"), []byte("v")))
	add("time", Hash{}.Fingerprint(5, at.Add(time.Millisecond), []byte("k"), []byte("v")))
	add("key", Hash{}.Fingerprint(5, at, []byte("l"), []byte("v")))
	add("shifted", Hash{}.Fingerprint(5, at, []byte("kv"), nil))
	add("nil key", Hash{}.Fingerprint(5, at, nil, []byte("v")))
	add("empty key", Hash{}.Fingerprint(5, at, []byte{}, []byte("v")))
	var h Hash
	h.Bytes([]byte("header"))
	add("header", h.Fingerprint(5, at, []byte("k"), []byte("v")))

	// Records that changed places, or one that stands for another, have another sum.
	sum := func(values ...string) (s uint32) {
		for i, v := range values {
			s += Hash{}.Fingerprint(int64(i), at, nil, []byte(v))
		}
		return s
	}
	a := sum("A1", "B1", "A2")
	for _, other := range []uint32{sum("B1", "A1", "A2"), sum("A1", "A2", "B1"), sum("A1", "B1", "B1"), sum("A1", "B1")} {
		if a == other {
			t.Error("another log has the same sum")
		}
	}
	got := Hash{}.Fingerprint(5, at, []byte("k"), []byte("v"))
	if want := uint32(0); got == want { // and it is the same in every process: see docs/ledger.md
		t.Error("no fingerprint")
	}
}
