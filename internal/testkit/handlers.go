package testkit

import (
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Succeed is a handler with nothing to do.
func Succeed(*message.Message, *ackpolicy.Delivery) error { return nil }

// ConfirmFirst is AckFirst with its commit confirmed before the handler starts.
var ConfirmFirst = ackpolicy.Middleware{ConfirmFirst: true}.Middleware
