package partition

// With Config.Output, what a delivery publishes is held until a transaction stores it
// together with the settlement of its record:
//
//	A transaction has exactly the output of the records that its snapshot says are settled,
//	and that no stored snapshot said so of before.
//
// A record is marked, and its output made ready, under one lock. A snapshot is taken under
// the same lock, says of every marked record that it is settled, and takes all that is ready.
// What is ready leaves only when a snapshot that took it is stored.

// Output is what one record puts out. The caller knows what it is.
type Output = any

// outputs is what the deliveries of a partition have published.
type outputs struct {
	held  map[uint64]parcel // by sequence number: of records that are not settled
	ready []parcel          // of settled records, in the order of their settlement
	bytes int64             // of those that are ready
}

// parcel is the output of one record.
type parcel struct {
	items []Output
	bytes int64
}

// mostReady is how many bytes may be ready before a transaction is requested early.
const mostReady = 1 << 20

// Hold keeps what a delivery publishes: a later settlement as ack makes it ready, a nack or a
// reject throws it away. It returns false, and keeps nothing, if the delivery is settled.
func (p *Partition[R, H]) Hold(d *Delivery[R, H], items []Output, bytes int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cfg.Output || p.status(d) != Pending {
		return false
	}
	p.hold(d.seq, items, bytes)
	return true
}

// HoldLetter keeps the dead letter of a rejected delivery. Release makes it ready.
func (p *Partition[R, H]) HoldLetter(d *Delivery[R, H], letter Output, bytes int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cfg.Output || !p.rejecting(d) {
		return false
	}
	p.discard(d.seq)
	p.hold(d.seq, []Output{letter}, bytes)
	return true
}

// Discard throws away what a delivery has published so far. It does nothing if the delivery
// is settled.
func (p *Partition[R, H]) Discard(d *Delivery[R, H]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status(d) == Pending {
		p.discard(d.seq)
	}
}

func (p *Partition[R, H]) hold(seq uint64, items []Output, bytes int64) {
	h := p.out.held[seq]
	h.items, h.bytes = append(h.items, items...), h.bytes+bytes
	p.out.held[seq] = h
	p.cfg.Bytes.Add(bytes)
}

func (p *Partition[R, H]) discard(seq uint64) {
	if h, ok := p.out.held[seq]; ok {
		delete(p.out.held, seq)
		p.cfg.Bytes.Add(-h.bytes)
	}
}

// emit makes the output of a record ready that is being marked.
func (p *Partition[R, H]) emit(seq uint64) {
	if h, ok := p.out.held[seq]; ok {
		delete(p.out.held, seq)
		p.out.ready = append(p.out.ready, h)
		p.out.bytes += h.bytes
	}
}

// put records that a transaction has stored the first n outputs that were ready.
func (p *Partition[R, H]) put(n int) {
	n = min(n, len(p.out.ready)) // the partition may have been dropped meanwhile
	done := p.out.ready[:n]
	p.out.ready = p.out.ready[n:]
	bytes := int64(0)
	for _, h := range done {
		bytes += h.bytes
	}
	clear(done)
	p.out.bytes -= bytes
	p.cfg.Bytes.Add(-bytes)
}

// throwAway forgets all output.
func (p *Partition[R, H]) throwAway() {
	for seq := range p.out.held {
		p.discard(seq)
	}
	p.put(len(p.out.ready))
}

// Output returns what is to be stored together with the snapshot.
func (s *Snapshot) Output() []Output {
	var all []Output
	for _, h := range s.output {
		all = append(all, h.items...)
	}
	return all
}

// Crowded records that there was no room for a whole snapshot: nothing more is stored before
// older records are settled, which handlers may wait for.
func (p *Partition[R, H]) Crowded() Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == closed {
		return Work{}
	}
	p.waiting = true
	return p.work()
}
