// Package ackpolicy decides when a Kafka record is done: a Watermill middleware with five acknowledgement policies, a
// Watermill subscriber that carries them out on Kafka, and a [Delivery] that a handler can settle by hand.
//
//	subscriber, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{Kafka: config}, logger)
//	// ...
//	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
//
// config is the kafka.SubscriberConfig that the application has today. Every field of it is honoured.
//
// # Policies
//
// A policy says what becomes of a record when its handler succeeds, and when it fails. To ack a record is to allow
// its offset to be committed; to nack it is to have it delivered again; to reject it is to give it up. Success means
// that the handler returned nil and that the Router published what it produced. Failure is an error, a panic, a
// timeout, or a publish that failed.
//
//   - [AckFirst], the zero value, acks before the handler runs. What fails then is lost; who gets it without having
//     chosen it is told in the log.
//   - [Ack] acks after the handler, whether it succeeded or failed.
//   - [RejectOnError] acks a success and rejects a failure.
//   - [NackOnError] acks a success and nacks a failure.
//   - [Manual] does nothing: the handler settles its records by hand.
//
// One [Middleware] may hold a policy for each handler of a Router (Handlers), and one for each kind of error
// (Classify). With ConfirmFirst, an AckFirst handler starts only after the broker has confirmed the commit.
//
// # Settling by hand
//
// [FromMessage] and [FromContext] give a handler its [Delivery]. Its verbs, Ack, Nack, NackAfter and Reject, work
// from any goroutine; under Manual also after the handler has returned. They override the policy, except AckFirst,
// which has settled by then: the first settlement wins, an equal one later returns true and does nothing, a different
// one returns false and does nothing. AckSync returns only when the broker stores that the record is settled.
// AckCumulative acks the record and everything before it in its partition that no handler works on.
//
// A verb settles a delivery, it does not finish it. In a Router the end of the handler finishes it. In a plain
// Subscribe loop msg.Ack or msg.Nack does, so call one of them also after a verb.
//
// # Signals
//
// A handler may return [ErrAck], [ErrNack], [ErrReject], [NackAfter] or [RejectWith] from any depth of its call
// stack, wrapped, joined, or as the value of a panic; so is an error of its own type whose method Is says so. A signal overrides the policy, except AckFirst, which has
// settled by then. It is control flow, not a failure: it is not logged as an error. Where several are joined, nack
// beats reject and reject beats ack. Messages returned beside a signal are not published. [IsSignal] tells a retrying,
// poisoning or circuit-breaking middleware to let a signal pass; [RestoreContext] belongs inside of it.
//
// # Ordering
//
// With [OrderByPartition], the default, a partition has one record in flight and a nacked record holds back those
// behind it. With [OrderByKey] that is so for each key, and unrelated keys go on: there is one queue for each key,
// not one for each hash of it. With [Unordered] no record waits for another. Whatever the ordering, an offset is
// committed only when every record before it is settled, and a redelivery repeats that one record, nothing behind it.
// What is settled behind a record that is not is stored beside the offset: after a restart it does not come again.
//
// # Deploys
//
// When the subscriber closes, when the context given to Subscribe ends, and when a partition is revoked, the
// partition drains: nothing more is handed out, running handlers get DrainTimeout to finish, what is settled is
// committed, and only then does the member leave. Records that wait after a nack are left to the next owner. A handler that takes longer has its context cancelled, with
// [ErrClosing] or [ErrRevoked] as its error and cause, and may overlap with the next owner's. Whatever error it then
// returns is no failure: its record is left to the next owner. [Delivery.Draining] tells a
// batching application to flush.
//
// # Guarantees
//
// Under every policy but AckFirst a record is handled at least once: it comes again after a crash, if it was not
// committed, up to MaxUncommitted records of each partition. Under AckFirst with ConfirmFirst a record is handled at
// most once. Nothing here is exactly once. [Subscriber.Guarantees] states what a given configuration promises.
//
// # Without our subscriber
//
// The middleware also works on any other Watermill subscriber, such as gochannel in a test: ack and reject become
// msg.Ack, nack becomes msg.Nack. Handlers read the same. Manual then waits until the message is settled, AckFirst
// handlers may find their context cancelled, and what only Kafka can do returns [ErrNotKafka]. Nor does the
// subscriber need the middleware: without it msg.Ack acks and msg.Nack nacks, as everywhere in Watermill.
package ackpolicy
