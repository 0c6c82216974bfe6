// Package observability holds a Grafana dashboard and alert rules for the metrics of
// ackpolicyprom, and the tests of both. Nothing imports it.
package observability
