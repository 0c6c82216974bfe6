package partition

// heap is a binary heap; the first of its order is at index 0.
type heap[T ordered[T]] []T

type ordered[T any] interface{ before(T) bool }

func (h *heap[T]) push(v T) (first bool) {
	s := append(*h, v)
	i := len(s) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !s[i].before(s[up]) {
			break
		}
		s[up], s[i] = s[i], s[up]
		i = up
	}
	*h = s
	return i == 0
}

func (h *heap[T]) pop() T {
	s := *h
	top := s[0]
	n := len(s) - 1
	s[0] = s[n]
	s = s[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && s[c+1].before(s[c]) {
			c++
		}
		if !s[c].before(s[i]) {
			break
		}
		s[i], s[c] = s[c], s[i]
		i = c
	}
	*h = s
	return top
}

// sequence is a sequence number in a heap.
type sequence uint64

func (a sequence) before(b sequence) bool { return a < b }

// redelivery says when a parked record is due. It is void if the record was settled or
// delivered since.
type redelivery struct {
	at      int64
	seq     uint64
	attempt int
}

func (a redelivery) before(b redelivery) bool { return a.at < b.at }
