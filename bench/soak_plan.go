package main

import "time"

// soakPlan is what a handler does with one delivery.
type soakPlan struct {
	act   soakAct
	work  time.Duration
	delay time.Duration // of a nack, or of what comes late
}

type soakAct int

const (
	actReturn soakAct = iota
	actVerb
	actAckSync
	actError
	actPanic
	actNackAfter
	actReject
	actSignalAck
	actLateAck
	actLateNack
	actLateReject
)

// verdict is what becomes of the delivery, as evEnd reports it.
func (p soakPlan) verdict() int64 {
	switch p.act {
	case actError, actPanic, actNackAfter:
		return statusNacked
	case actReject:
		return statusRejected
	case actLateAck:
		return statusAcked | settledLate
	case actLateNack:
		return statusNacked | settledLate
	case actLateReject:
		return statusRejected | settledLate
	}
	return statusAcked
}

// chances are in thousandths; what is missing is an ack.
type chance struct {
	act soakAct
	of  int
}

var (
	policyChances = []chance{{actVerb, 30}, {actAckSync, 10}, {actError, 60}, {actPanic, 30}, {actNackAfter, 60}, {actReject, 40}, {actSignalAck, 20}}
	manualChances = []chance{{actAckSync, 10}, {actLateAck, 400}, {actLateNack, 50}, {actLateReject, 30}, {actNackAfter, 50}, {actReject, 30}, {actSignalAck, 100}}
)

// newSoakPlan returns a plan that decides the same for the same delivery, whoever gets it. What was
// nacked is acked, mostly, when it comes again.
func newSoakPlan(seed uint64, partition int32, offset int64, attempt int, manual bool) soakPlan {
	dice := mix(seed ^ mix(uint64(partition)<<48^uint64(offset)) ^ uint64(attempt)<<56)
	roll := func(n uint64) uint64 {
		dice = mix(dice)
		return dice % n
	}
	p := soakPlan{delay: time.Duration(roll(1500)) * time.Millisecond}
	switch n := roll(1000); {
	case n < 3:
		p.work = time.Duration(100+roll(400)) * time.Millisecond
	case n < 50:
		p.work = time.Duration(5+roll(15)) * time.Millisecond
	case n < 500:
		p.work = time.Duration(roll(2000)) * time.Microsecond
	}
	chances := policyChances
	p.act = actReturn
	if manual {
		chances = manualChances
		p.act = actSignalAck
	}
	if attempt > 1 && roll(10) > 0 {
		return p
	}
	n := int(roll(1000))
	for _, c := range chances {
		if n -= c.of; n < 0 {
			p.act = c.act
			break
		}
	}
	return p
}

// mix is the finaliser of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
