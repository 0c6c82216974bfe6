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
