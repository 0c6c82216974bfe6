// Package chaos runs the members of a consumer group as processes of their own, has a schedule of faults befall them,
// and judges from a ledger of every record whether what docs/semantics.md promises was kept. docs/chaos.md says how to
// run it and how to read what it says.
//
//   - [NewSpec] and [Schedule] are what a seed decides: ordering, policy, the faults and their times. What a record's
//     handler does follows from the seed and its offset.
//   - [Main] is a member. It writes into its [Ledger] before and after whatever it does.
//   - [Run] is the test's side: it starts members, each behind a [Proxy], produces, and performs the schedule.
//   - [Judge] reads all ledgers, and nothing else, and reports each [Violation] with the life of its record.
package chaos
