// Package ackpolicytest helps to test applications of package ackpolicy, without a broker.
//
// [New] returns a Delivery for the test of one handler and its policy:
//
//	d := ackpolicytest.New(message.NewMessage("1", payload), ackpolicytest.Record{Attempt: 2})
//	d.Handle(ackpolicy.NackOnError.Middleware(handler))
//	d.Settlement().WantNacked(t, 2, 100*time.Millisecond)
//
// [Letters] is a DeadLetter that keeps what it is sent.
package ackpolicytest
