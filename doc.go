// Package ackpolicy provides per-record acknowledgement for Watermill on Kafka: a
// middleware with five acknowledgement policies, a [Subscriber] that carries them out, and
// a [Delivery] that a handler can settle by hand.
//
//	subscriber, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{Kafka: config}, logger)
//	// ...
//	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
//
// config is the kafka.SubscriberConfig that the application has today. Each of its fields
// is honoured.
//
// # Policies
//
// A policy says what happens to a record when its handler succeeds, and when it fails. To
// ack a record is to allow its offset to be committed. To nack it is to have it delivered
// again. To reject it is to give it up. Success means that the handler returned nil and
// the Router published what it produced. Failure is an error, a panic, a timeout, or a
// failed publish.
//
//   - [AckFirst], the zero value, acks before the handler runs. What fails afterwards is
//     lost. A log line says so if nobody chose it.
//   - [Ack] acks after the handler, whether it succeeded or failed.
//   - [RejectOnError] acks a success and rejects a failure.
//   - [NackOnError] acks a success and nacks a failure.
//   - [Manual] does nothing: the handler settles its records by hand.
//
// One [Middleware] may have a policy for each handler of a Router (Handlers), and another
// one for some errors (Classify). With ConfirmFirst, an AckFirst handler starts only after
// the broker has confirmed the commit.
//
// # Settling by hand
//
// [FromMessage] and [FromContext] return the [Delivery] of a message. Its verbs Ack, Nack,
// NackAfter and Reject may be called from any goroutine, and under Manual also after the
// handler has returned. They take precedence over the policy, except for AckFirst, which
// has settled the record already. The first settlement counts: an equal one later returns
// true and does nothing, a different one returns false and does nothing. AckSync returns
// only once the broker stores that the record is settled. AckCumulative acks the record,
// and every earlier one of its partition that is pending or waits after a nack.
//
// A verb settles a delivery; it does not finish it. In a Router, the delivery is finished
// when the handler has returned. In a plain Subscribe loop it is finished by msg.Ack or
// msg.Nack, so call one of them also after a verb.
//
// # Signals
//
// Anything below a handler may return [ErrAck], [ErrNack], [ErrReject], [NackAfter] or
// [RejectWith], wrapped, joined, or as the value of a panic. An error of the application's
// own type is a signal if its method Is or As says so. A signal takes precedence over the
// policy, except for AckFirst. It is control flow, not a failure, and is not logged as an
// error. If several are joined, nack takes precedence over reject, and reject over ack.
// Messages returned together with a signal are not published. Use [IsSignal] in the filters of
// middlewares that retry, poison or break circuits, and put [RestoreContext] inside them.
// Where something else replaces a handler's error, call [Settle]; package ackpolicycqrs does
// for Watermill's CQRS processors.
//
// # Ordering
//
// With [OrderByPartition], the default, a partition has one record in flight, and a nacked
// record holds back those behind it. With [OrderByKey] the same is true for each key, and
// other keys are not affected: there is one queue per key, not one per hash of it. With
// [Unordered] no record waits for another. An offset is committed only when every record
// before it is settled, and a redelivery repeats one record and nothing behind it. Records
// that are settled behind an open one are listed beside the committed offset, so that they
// do not come again after a restart.
//
// # Topics
//
// Subscribe takes one topic, several with commas between them, or patterns: "orders, invoices",
// "orders.*". One member of the group reads them all, and topics that match may come and go.
// [Delivery.Topic] returns that of a message.
//
// # Deploys
//
// When the subscriber closes, when the context passed to Subscribe ends, and when a
// partition is revoked, the partition drains: nothing more is handed out, running handlers
// have DrainTimeout to finish, what is settled is committed, and only then does the member
// leave. Records that wait after a nack are left to the next owner. A handler that takes
// longer has its context cancelled, with [ErrClosing] or [ErrRevoked] as its error and
// cause, and may overlap with the next owner's. Whatever error it then returns is not a
// failure: its record is left to the next owner. [Delivery.Draining] returns a channel on
// which a batching application can wait to flush.
//
// # Guarantees
//
// Under every policy except AckFirst a record is handled at least once. After a crash it
// comes again if it was not committed; at most MaxUncommitted records of each partition do.
// Under AckFirst with ConfirmFirst a record is handled at most once. No record is
// handled exactly once; with Transactions, the output of each to Kafka appears exactly once.
// [Subscriber.Guarantees] returns what a given configuration guarantees.
//
// # Other subscribers
//
// The middleware also works on any other Watermill subscriber, such as gochannel in a
// test: ack and reject become msg.Ack, nack becomes msg.Nack. Handlers are written the
// same way. Manual then waits until the message is settled, AckFirst handlers may find their
// context cancelled, and what only Kafka can do returns [ErrNotKafka]. The Subscriber does
// not need the middleware either: without it msg.Ack acks and msg.Nack nacks, as everywhere
// in Watermill, or do what SubscriberConfig.Policy says.
package ackpolicy
