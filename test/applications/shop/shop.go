// Package shop has the messages of the tests.
package shop

import "github.com/ThreeDotsLabs/watermill/components/cqrs"

// Order is a command and an event.
type Order struct{ ID string }

// Names makes and reads the messages.
var Names = cqrs.JSONMarshaler{GenerateName: cqrs.StructName}
