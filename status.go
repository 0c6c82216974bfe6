package ackpolicy

import "fmt"

// Status is the fate of a delivery.
type Status uint8

const (
	Pending  Status = iota // not settled
	Acked                  // its offset may be committed
	Nacked                 // it will be delivered again
	Rejected               // it will not be delivered again
	Revoked                // the partition was revoked, or the subscriber closed, before it was settled
)

var statusNames = [...]string{"pending", "acked", "nacked", "rejected", "revoked"}

// String returns the status in lower case.
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}
