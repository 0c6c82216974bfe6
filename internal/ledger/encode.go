package ledger

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"
	"sync"
	"time"
)

const (
	magic   = "ackpolicy"
	version = 1
	prefix  = magic + "1:"
)

const (
	flagClean    = 1 << iota // the member left after a drain
	flagTopicID              // 16 bytes follow, and 4 of the cluster
	flagCrashes              // their number and time follow
	flagBits                 // marks as a bitmap, not as runs
	flagDeflated             // the body is compressed
	flagRedrive              // Kind
	flagTimes                // open records have times
	flagNotes                // open records have notes
)

const (
	// worthCompressing is the size of a body from which on it is compressed. A smaller
	// one costs a broker no more than a commit without a ledger.
	worthCompressing = 512
	// maxBody limits a body before compression, so that no text can inflate without limit.
	maxBody = 256 << 10
)

// Kept describes how much of a ledger its text contains.
type Kept struct {
	Blocks  []bool // by index
	Open    int    // how many, from the first
	Times   bool   // whether it has their times
	Delays  bool   // whether it has their delays
	Errs    bool   // and their errors
	Rejects bool   // and which of them are rejected
}

// Whole reports whether nothing of l was left out.
func (k Kept) Whole(l *Ledger) bool {
	return !slices.Contains(k.Blocks, false) && k.Open == len(l.Open) && k.Times && k.Delays && k.Errs && k.Rejects
}

// Encode returns a ledger as a text of at most room bytes. What does not fit is left out:
// errors first, then delays, rejects, times, open records from the highest down, then blocks from the highest down,
// those of a higher rank last. The text is empty if nothing fits.
func Encode(at Place, l *Ledger, room int) (string, Kept) {
	e := encoder{at: at, l: l, room: room, blocks: make([]bool, len(l.Blocks)), open: len(l.Open), times: true}
	e.keepBlocks(len(l.Blocks), Plain)
	for e.notes = l.notes(); ; e.notes-- {
		if text, _, ok := e.text(); ok {
			return text, e.kept()
		}
		if e.notes == noNotes {
			break
		}
	}
	e.times = false
	e.open = 0
	levels := []level{
		{len(l.Open), func(n int) { e.open = n }},
		{len(l.Blocks), func(n int) { e.keepBlocks(n, Plain) }},
		{len(l.Blocks), func(n int) { e.keepBlocks(n, Awaited) }},
		{len(l.Blocks), func(n int) { e.keepBlocks(n, Promised) }},
	}
	if _, _, ok := e.text(); !ok { // the blocks alone do not fit
		levels = levels[1:]
	}
	for _, level := range levels {
		if text, ok := e.most(level.n, level.keep); ok {
			return text, e.kept()
		}
	}
	return "", Kept{Blocks: make([]bool, len(l.Blocks))}
}

// level is a kind of content. Any number of its first items may be kept.
type level struct {
	n    int
	keep func(n int)
}

type encoder struct {
	at   Place
	l    *Ledger
	room int

	blocks []bool
	open   int
	times  bool
	notes  int
}

func (e *encoder) kept() Kept {
	needed := e.l.notes()
	return Kept{Blocks: e.blocks, Open: e.open, Times: e.times, Delays: e.notes >= min(needed, withDelays), Errs: e.notes >= needed, Rejects: e.notes >= min(needed, withRejects)}
}

// keepBlocks keeps, of the blocks with a rank, the first n, and all of a higher rank.
func (e *encoder) keepBlocks(n int, rank Rank) {
	for i := range e.blocks {
		r := e.l.Blocks[i].Rank
		e.blocks[i] = r > rank || r == rank && i < n
	}
}

// most sets approximately the highest number up to n with which the text fits. It
// estimates it from the sizes of its attempts, since each costs a compression, and accepts
// a few percent less.
func (e *encoder) most(n int, set func(int)) (best string, ok bool) {
	fits, tooMany := -1, n+1
	for try := n; ; {
		set(try)
		text, size, ok := e.text()
		if ok {
			fits, best = try, text
		} else {
			tooMany = try
		}
		if tooMany-fits <= 1+max(fits, 0)/32 {
			break
		}
		guess := try * e.room / size
		try = min(max(guess, fits+(tooMany-fits)/8, fits+1), tooMany-1-(tooMany-fits)/8)
	}
	if fits < 0 {
		return "", false
	}
	set(fits)
	return best, true
}

// text encodes what is kept. It returns the size also if the text does not fit.
func (e *encoder) text() (text string, size int, fits bool) {
	head, flags := e.head()
	runs, ends := e.runs()
	rest := e.appendOpen(e.appendBlocks(nil, ends))
	if e.notes > noNotes {
		flags |= flagNotes
		rest = e.appendNotes(rest)
	}
	body, form := append(appendRuns(nil, e.at.Offset, runs), rest...), byte(0)
	bodies := [][]byte{body, nil}
	if n := len(runs); n > 0 && runs[n-1].To-e.at.Offset < 8*maxBody/2 {
		bodies[1] = append(appendBits(nil, e.at.Offset, runs), rest...)
		if len(bodies[1]) < len(body) {
			body, form = bodies[1], flagBits
		}
	}
	for i, other := range bodies {
		// A compressed byte takes a bit or more.
		if len(other) < worthCompressing || len(other) > maxBody || len(other)/8 >= len(body) {
			continue
		}
		if other = deflate(other); len(other) < len(body) {
			body, form = other, flagDeflated|byte(i)*flagBits
		}
	}
	data := append([]byte{0, 0, 0, 0, flags | form}, head...)
	size = len(prefix) + base64.RawStdEncoding.EncodedLen(len(data)+len(body))
	if size > e.room || form&flagDeflated == 0 && len(body) > maxBody {
		return "", size, false
	}
	data = append(data, body...)
	binary.BigEndian.PutUint32(data, checksum(e.at, data[4:]))
	return prefix + base64.RawStdEncoding.EncodeToString(data), size, true
}

// checksum includes the place.
func checksum(at Place, data []byte) uint32 {
	var n [12]byte
	binary.BigEndian.PutUint64(n[:], uint64(at.Offset))
	binary.BigEndian.PutUint32(n[8:], uint32(at.Partition))
	crc := crc32.Update(0, castagnoli, []byte(prefix+at.Topic))
	crc = crc32.Update(crc, castagnoli, n[:])
	return crc32.Update(crc, castagnoli, data)
}

func (e *encoder) head() (head []byte, flags byte) {
	if e.l.Clean {
		flags |= flagClean
	}
	if e.l.Kind == Redrive {
		flags |= flagRedrive
	}
	if e.l.TopicID != [16]byte{} {
		flags |= flagTopicID
		head = append(head, e.l.TopicID[:]...)
		head = binary.BigEndian.AppendUint32(head, e.l.Cluster)
	}
	if e.l.Crashes > 0 {
		flags |= flagCrashes
		head = append(head, byte(min(e.l.Crashes, 255)))
		head = binary.AppendVarint(head, e.l.CrashedAt.UnixMilli())
	}
	if e.times {
		flags |= flagTimes
	}
	return head, flags
}

// runs returns the marked runs, with those that touch joined, and where each block ends.
func (e *encoder) runs() (runs []Run, ends []int64) {
	for i, kept := range e.blocks {
		if !kept {
			continue
		}
		b := &e.l.Blocks[i]
		for _, r := range b.Runs {
			if n := len(runs); n > 0 && runs[n-1].To == r.From {
				runs[n-1].To = r.To
			} else {
				runs = append(runs, r)
			}
		}
		ends = append(ends, b.End())
	}
	return runs, ends
}

// appendRuns writes the number of runs and, for each, the distance from the one
// before, or from the offset, and its length.
func appendRuns(to []byte, offset int64, runs []Run) []byte {
	to = binary.AppendUvarint(to, uint64(len(runs)))
	for _, r := range runs {
		to = binary.AppendUvarint(to, uint64(r.From-offset))
		to = binary.AppendUvarint(to, uint64(r.To-r.From))
		offset = r.To
	}
	return to
}

// appendBits writes the number of bytes, and a bit for each offset from the committed one on.
func appendBits(to []byte, offset int64, runs []Run) []byte {
	bits := make([]byte, (runs[len(runs)-1].To-offset+7)/8)
	for _, r := range runs {
		for o := r.From - offset; o < r.To-offset; o++ {
			bits[o/8] |= 1 << (o % 8)
		}
	}
	return append(binary.AppendUvarint(to, uint64(len(bits))), bits...)
}

// appendBlocks writes the number of blocks and, for each, where it ends and its sum.
func (e *encoder) appendBlocks(to []byte, ends []int64) []byte {
	to = binary.AppendUvarint(to, uint64(len(ends)))
	last := e.at.Offset
	for i, kept := range e.blocks {
		if kept {
			to = binary.AppendUvarint(to, uint64(ends[0]-last))
			to = binary.BigEndian.AppendUint32(to, e.l.Blocks[i].Sum)
			last, ends = ends[0], ends[1:]
		}
	}
	return to
}

// appendOpen writes the number of open records and, for each, its distance from the one
// before, its attempts with a bit for in flight, its check and, with times, its times, as
// distances from the earliest of all.
func (e *encoder) appendOpen(to []byte) []byte {
	open := e.l.Open[:e.open]
	to = binary.AppendUvarint(to, uint64(len(open)))
	base := int64(0)
	if e.times {
		base = earliest(open)
		to = binary.AppendVarint(to, base)
	}
	last := e.at.Offset
	for _, o := range open {
		to = binary.AppendUvarint(to, uint64(o.Offset-last))
		n := uint64(o.Attempts) << 1
		if o.InFlight {
			n |= 1
		}
		to = binary.AppendUvarint(to, n)
		if o.InFlight {
			to = binary.AppendUvarint(to, uint64(o.Alone))
		}
		to = binary.BigEndian.AppendUint16(to, o.Check)
		if e.times {
			to = appendAfter(appendAfter(to, base, o.Due), base, o.First)
		}
		last = o.Offset + 1
	}
	return to
}

// appendAfter writes 1 + the distance of a time from base, or 0 for the zero time.
func appendAfter(to []byte, base int64, t time.Time) []byte {
	if t.IsZero() {
		return append(to, 0)
	}
	return binary.AppendUvarint(to, uint64(t.UnixMilli()-base)+1)
}

// earliest returns the earliest time in Unix milliseconds, or 0 if there is none.
func earliest(open []Open) int64 {
	first := int64(math.MaxInt64)
	for _, o := range open {
		for _, t := range []time.Time{o.First, o.Due} {
			if !t.IsZero() {
				first = min(first, t.UnixMilli())
			}
		}
	}
	if first == math.MaxInt64 {
		return 0
	}
	return first
}

// deflaters are reused, since each takes much memory. They do not search for matches: only
// the lengths of the runs are left to compress, and a match costs more than it saves.
var deflaters = sync.Pool{New: func() any {
	w, err := flate.NewWriter(nil, flate.HuffmanOnly)
	if err != nil {
		panic(err) // only for an invalid level
	}
	return w
}}

func deflate(data []byte) []byte {
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	var out bytes.Buffer
	w.Reset(&out)
	_, _ = w.Write(data) // into memory: neither fails
	_ = w.Close()
	return out.Bytes()
}
