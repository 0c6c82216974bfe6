// Package ackpolicytest helps to test applications of package ackpolicy, without a broker.
//
// [New] returns a Delivery for the test of one handler and its policy. [Run] runs the test of
// a service with a Kafka in memory and on virtual time, in which an hour takes milliseconds.
// [Letters] is a DeadLetter that keeps what it is sent. [TestDeadLetter] and [TestUnmarshaler]
// test an application's own implementations.
//
// docs/testing.md shows how they are used, and examples/testing is a service with its tests.
package ackpolicytest
