package partition

// Load describes the window, to decide whether to pause the partition.
type Load struct {
	Ready     int    // records that only wait for a slot
	Blocked   bool   // MaxUncommitted holds records back
	Running   int    // unfinished deliveries
	Unsettled int    // records from the oldest unsettled one on
	Admitted  uint64 // the number of records that MaxUncommitted has admitted so far

	Uncommitted int // records below the watermark that no confirmed commit covers
}

// Load returns the current load.
func (p *Partition[R, H]) Load() Load {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Load{
		Ready: p.nready, Blocked: p.blocked(), Running: p.nrunning,
		Unsettled: int(p.tail - p.head), Admitted: p.admitted, Uncommitted: max(0, int(p.front-p.committed)),
	}
}

// Next returns the offset after the last record that was pushed.
func (p *Partition[R, H]) Next() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastOffset() + 1
}

// ArmLow requests one Work.Low as soon as at most n records are ready and MaxUncommitted
// holds none back. If that is already so, it requests nothing.
func (p *Partition[R, H]) ArmLow(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.low = n
	if p.nready <= n && !p.blocked() {
		p.low = -1
	}
}

// Oldest describes the oldest unsettled record, which holds the commit of the partition.
type Oldest struct {
	Offset  int64
	Attempt int
	State   string
}

// Oldest returns the oldest unsettled record, or false if everything is settled.
func (p *Partition[R, H]) Oldest() (Oldest, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.head == p.tail {
		return Oldest{}, false
	}
	e := p.at(p.head)
	return Oldest{Offset: e.offset, Attempt: e.attempt, State: e.state.String()}, true
}

var stateNames = [...]string{
	queued:     "waiting for a slot",
	unverified: "settled by an earlier owner, as far as is known by now",
	inFlight:   "with its handler",
	nacked:     "nacked, its handler still runs",
	pending:    "its handler returned without settling it",
	parked:     "nacked, waiting for its next delivery",
	due:        "due, waiting for a slot",
	rejecting:  "rejected, its dead letter is not stored yet",
	confirming: "acked, its commit is not confirmed yet",
	delayed:    "waiting for the time in its delay metadata",
	settled:    "settled",
}

// deliveryList is a list of deliveries.
type deliveryList[R, H any] struct{ first, last *Delivery[R, H] } // the newest first

func (l *deliveryList[R, H]) push(d *Delivery[R, H]) {
	d.prev, d.next = nil, l.first
	if l.first != nil {
		l.first.prev = d
	} else {
		l.last = d
	}
	l.first = d
}

func (l *deliveryList[R, H]) remove(d *Delivery[R, H]) {
	if d.prev != nil {
		d.prev.next = d.next
	} else {
		l.first = d.next
	}
	if d.next != nil {
		d.next.prev = d.prev
	} else {
		l.last = d.prev
	}
	d.prev, d.next = nil, nil
}
