package ledger

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/binary"
	"io"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// Decode reads what Encode wrote for a place. The error is always one of this package's,
// whatever the text is.
func Decode(at Place, text string) (*Ledger, error) {
	if text == "" {
		return nil, ErrNone
	}
	number, rest, ok := strings.Cut(strings.TrimPrefix(text, magic), ":")
	v, err := strconv.ParseUint(number, 10, 16)
	switch {
	case !ok, err != nil, !strings.HasPrefix(text, magic), number != strconv.FormatUint(v, 10): // 01 is not 1
		return nil, ErrForeign
	case v > version:
		return nil, ErrNewer
	case v != version:
		return nil, ErrForeign
	}
	data, err := base64.RawStdEncoding.Strict().DecodeString(rest)
	if err != nil || len(data) < 5 || binary.BigEndian.Uint32(data) != checksum(at, data[4:]) {
		return nil, ErrDamaged
	}
	d := decoder{data: data[5:]}
	l := d.ledger(at.Offset, data[4])
	if d.failed || len(d.data) > 0 {
		return nil, ErrDamaged
	}
	return l, nil
}

// decoder reads from data. After a failure everything that it reads is zero.
type decoder struct {
	data   []byte
	failed bool
}

func (d *decoder) fail() {
	d.data, d.failed = nil, true
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.data) {
		d.fail()
		return make([]byte, min(n, 16)) // callers use up to 16
	}
	b := d.data[:n]
	d.data = d.data[n:]
	return b
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.data)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.data = d.data[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.data)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.data = d.data[n:]
	return v
}

// count reads the number of items that follow, each of which takes at least size bytes.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.data)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

// after reads an offset as its distance from another one.
func (d *decoder) after(offset int64) int64 {
	distance := d.uvarint()
	if distance > uint64(math.MaxInt64-offset) {
		d.fail()
		return offset
	}
	return offset + int64(distance)
}

func (d *decoder) ledger(offset int64, flags byte) *Ledger {
	l := &Ledger{Clean: flags&flagClean != 0}
	if flags&flagRedrive != 0 {
		l.Kind = Redrive
	}
	if flags&flagTopicID != 0 {
		copy(l.TopicID[:], d.bytes(len(l.TopicID)))
		l.Cluster = binary.BigEndian.Uint32(d.bytes(4))
	}
	if flags&flagCrashes != 0 {
		l.Crashes = int(d.bytes(1)[0])
		l.CrashedAt = time.UnixMilli(d.varint())
	}
	if flags&flagDeflated != 0 {
		d.inflate()
	}
	var runs []Run
	if flags&flagBits != 0 {
		runs = d.bits(offset)
	} else {
		runs = d.runs(offset)
	}
	l.Blocks = d.blocks(offset, runs)
	l.Open = d.open(offset, flags&flagTimes != 0, l.Blocks)
	if flags&flagNotes != 0 {
		d.notes(l.Open)
	}
	return l
}

func (d *decoder) inflate() {
	in := bytes.NewReader(d.data)
	body, err := io.ReadAll(io.LimitReader(flate.NewReader(in), maxBody+1))
	if err != nil || len(body) > maxBody || in.Len() > 0 {
		d.fail()
		return
	}
	d.data = body
}

func (d *decoder) runs(offset int64) []Run {
	n := d.count(2)
	runs := make([]Run, 0, n)
	for at := offset; len(runs) < n; {
		r := Run{From: d.after(at)}
		r.To = d.after(r.From)
		// There is an open offset between two runs.
		if d.failed || r.From == at && len(runs) > 0 || r.To == r.From {
			d.fail()
			return nil
		}
		runs, at = append(runs, r), r.To
	}
	return runs
}

func (d *decoder) bits(offset int64) (runs []Run) {
	set := d.bytes(d.count(1))
	if d.failed || len(set) == 0 || offset > math.MaxInt64-8*int64(len(set)) || set[len(set)-1] == 0 {
		d.fail()
		return nil
	}
	for i, b := range set {
		for at := 0; b>>at != 0; {
			at += bits.TrailingZeros8(b >> at)
			n := bits.TrailingZeros8(^(b >> at))
			from := offset + int64(8*i+at)
			if last := len(runs) - 1; last >= 0 && runs[last].To == from {
				runs[last].To += int64(n)
			} else {
				runs = append(runs, Run{from, from + int64(n)})
			}
			if at += n; at >= 8 {
				break
			}
		}
	}
	return runs
}

// blocks divides the runs into their blocks.
func (d *decoder) blocks(offset int64, runs []Run) []Block {
	n := d.count(5)
	blocks := make([]Block, 0, n)
	for at := offset; len(blocks) < n; {
		at = d.after(at)
		b := Block{Sum: binary.BigEndian.Uint32(d.bytes(4))}
		for len(runs) > 0 && runs[0].From < at {
			r := runs[0]
			if r.To > at {
				r.To, runs[0].From = at, at
			} else {
				runs = runs[1:]
			}
			b.Runs = append(b.Runs, r)
		}
		if d.failed || len(b.Runs) == 0 || b.End() != at { // a block ends with a mark
			d.fail()
			return nil
		}
		blocks = append(blocks, b)
	}
	if len(runs) > 0 {
		d.fail()
	}
	return blocks
}

// timeAfter reads a time, written as 1 + its distance from another; 0 is the zero time.
func (d *decoder) timeAfter(base int64) time.Time {
	after := d.uvarint()
	switch {
	case after == 0:
		return time.Time{}
	case after > mostMillis:
		d.fail()
		return time.Time{}
	}
	return time.UnixMilli(base + int64(after-1))
}

func (d *decoder) open(offset int64, times bool, blocks []Block) []Open {
	n := d.count(4)
	base := int64(0)
	if times {
		base = d.varint()
	}
	var open []Open
	for at := offset; len(open) < n; {
		o := Open{Offset: d.after(at)}
		attempts := d.uvarint()
		o.Attempts, o.InFlight = int(attempts>>1), attempts&1 != 0
		if o.InFlight {
			alone := d.uvarint()
			if alone > math.MaxInt32 {
				d.fail()
			}
			o.Alone = int(alone)
		}
		o.Check = binary.BigEndian.Uint16(d.bytes(2))
		if times {
			o.Due, o.First = d.timeAfter(base), d.timeAfter(base)
		}
		_, marked := Marked(blocks, o.Offset)
		if d.failed || marked || attempts>>1 > math.MaxInt32 || o.Offset == math.MaxInt64 {
			d.fail()
			return nil
		}
		open, at = append(open, o), o.Offset+1
	}
	return open
}
