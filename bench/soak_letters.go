package main

// letterCount counts a record's rejections and the dead letters seen of it. Either
// may be reported first.
type letterCount struct{ rejected, letters int }

func (j *judge) reject(id soakRecord) { j.count(id, letterCount{rejected: 1}) }

// letter counts a dead letter that was read.
func (j *judge) letter(id soakRecord) { j.count(id, letterCount{letters: 1}) }

// count forgets a record with a letter for each rejection.
func (j *judge) count(id soakRecord, by letterCount) {
	c := j.letters[id]
	c.rejected += by.rejected
	c.letters += by.letters
	if c.rejected == c.letters {
		delete(j.letters, id)
	} else {
		j.letters[id] = c
	}
}

// storedLetter takes note of a letter that is stored.
func (j *judge) storedLetter(p *soakPartition, e soakEvent) {
	if j.belated(p, e, statusRejected) {
		return
	}
	if f := p.open[e.Offset]; f != nil && f.status == statusRejected && !f.final {
		j.final(p, f)
	}
}

// checkLetters wants at least one letter a rejected record, and at most one a rejection:
// whoever is given a record whose letter was not stored rejects it again.
func (j *judge) checkLetters() {
	for id, c := range j.letters {
		switch {
		case c.letters == 0:
			j.violation("%d/%d: rejected, and no dead letter", id.partition, id.offset)
		case c.letters > c.rejected:
			j.violation("%d/%d: %d dead letters, rejected %d times", id.partition, id.offset, c.letters, c.rejected)
		}
	}
}
