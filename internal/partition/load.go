package partition

// Load describes the window, to decide whether to pause the partition.
type Load struct {
	Ready       int    // records that only wait for a slot
	Blocked     bool   // MaxUncommitted holds records back
	Running     int    // deliveries whose handlers have not returned
	Unsettled   int    // records
	Admitted    uint64 // the number of records that MaxUncommitted has admitted so far
	Unconfirmed int    // records below the watermark that no confirmed commit covers
}

// Load returns the current load.
func (p *Partition[R, H]) Load() Load {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.load()
}

func (p *Partition[R, H]) load() Load {
	l := Load{Ready: p.nready, Blocked: p.blocked(), Running: len(p.running), Admitted: p.admitted, Unconfirmed: max(0, int(p.front-p.committed))}
	for _, n := range p.counts[:states] {
		l.Unsettled += n
	}
	return l
}

// Next returns the offset after the last record that was pushed.
func (p *Partition[R, H]) Next() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
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
