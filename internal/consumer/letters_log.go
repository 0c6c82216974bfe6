package consumer

import "github.com/ThreeDotsLabs/watermill"

// tell logs how a Send ended.
func (s *sharedLetters) tell(c *Claim, it *letter, o outcome, givenUp, ended bool) {
	fields := watermill.LogFields{"kafka_partition_offset": it.d.Offset()}
	switch {
	case ended: // the end of the assignment is told elsewhere
		s.forget(it)
	case o.gone:
		s.forget(it)
		c.logger.Error("Dead letter not stored, nor will it be: its record was pushed out of memory, and is gone", o.err, fields)
	case givenUp:
		s.forget(it)
		c.logger.Error("Dead letter refused for good: its record is given up", o.err, fields)
	case o.err == nil:
		s.stored(c, it)
	case o.permanent:
		s.refusedOnce(c, it, o.err, fields)
	default:
		s.failedOnce(c, it, o.err, fields)
	}
}

func (s *sharedLetters) failedOnce(c *Claim, it *letter, err error, fields watermill.LogFields) {
	s.mu.Lock()
	if it.failures++; it.failures == 1 {
		s.nfailing++
	}
	fields["letters_waiting"] = s.nfailing
	s.mu.Unlock()
	report, tell := s.failing.Failed()
	fields = report.AddTo(fields).Add(watermill.LogFields{"attempt": it.failures})
	if tell {
		c.logger.Error("Dead letter not stored, it is tried again: its record is kept and nothing is committed past it", err, fields)
	} else {
		c.logger.Debug("Dead letter not stored", fields.Add(watermill.LogFields{"err": err.Error()}))
	}
}

func (s *sharedLetters) refusedOnce(c *Claim, it *letter, err error, fields watermill.LogFields) {
	s.mu.Lock()
	if it.failures > 0 {
		it.failures = 0
		s.nfailing--
	}
	if !it.refused {
		it.refused = true
		s.nrefused++
	}
	fields["letters_refused"] = s.nrefused
	s.mu.Unlock()
	report, tell := s.refused.Failed()
	fields = report.AddTo(fields)
	if tell {
		c.logger.Error("Dead letter refused for good: its record is kept and nothing is committed past it. Change the destination, or set SubscriberConfig.OnUnstorable", err, fields)
	} else {
		c.logger.Debug("Dead letter refused for good", fields.Add(watermill.LogFields{"err": err.Error()}))
	}
}

func (s *sharedLetters) stored(c *Claim, it *letter) {
	failing, refused := s.remove(it)
	if failing {
		if report, tell := s.failing.Over(); tell {
			c.logger.Info("Dead letters are stored again", report.AddTo(nil))
		}
	}
	if refused {
		if report, tell := s.refused.Over(); tell {
			c.logger.Info("Dead letters that were refused are stored", report.AddTo(nil))
		}
	}
}

// forget takes a letter off the count that will not be stored by us.
func (s *sharedLetters) forget(it *letter) {
	failing, refused := s.remove(it)
	if failing {
		s.failing.Over()
	}
	if refused {
		s.refused.Over()
	}
}

// remove reports whether the letter was the last one of those that fail, or are refused.
func (s *sharedLetters) remove(it *letter) (failing, refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it.failures > 0 {
		it.failures = 0
		s.nfailing--
		failing = s.nfailing == 0
	}
	if it.refused {
		it.refused = false
		s.nrefused--
		refused = s.nrefused == 0
	}
	return failing, refused
}
