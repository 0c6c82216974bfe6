package ledger_test

import (
	"fmt"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// The worked examples of docs/ledger.md.

// Offset 1000 is committed. 1000 is open, 1001 to 1003 are settled, 1004 is open, 1005 is settled.
func ExampleEncode() {
	at := ledger.Place{Topic: "orders", Partition: 3, Offset: 1000}
	due := time.UnixMilli(1_800_000_000_000)
	text, _ := ledger.Encode(at, &ledger.Ledger{
		TopicID: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
		Cluster: 0x0c1a57e4,
		Clean:   true,
		Blocks:  []ledger.Block{{Runs: []ledger.Run{{From: 1001, To: 1004}, {From: 1005, To: 1006}}, Sum: 0xcafef00d}},
		Open: []ledger.Open{
			{Offset: 1000, Attempts: 2, First: due.Add(-time.Second), Due: due, Check: 0xbeef},
			{Offset: 1004, Attempts: 1, Check: 0xf00d},
		},
	}, ledger.DefaultRoom)
	fmt.Println(text)

	l, err := ledger.Decode(at, text)
	fmt.Println(l.Blocks[0].Runs, l.Open[0].Attempts, l.Open[0].Due.Equal(due), err)

	// Nothing above the offset: what a commit stores where nothing is open.
	text, _ = ledger.Encode(at, &ledger.Ledger{TopicID: [16]byte{1}, Clean: true}, ledger.DefaultRoom)
	fmt.Println(text)
	// Output:
	// ackpolicy1:L2WH/0sBAgMEBQYHCAkKCwwNDg8QDBpX5AEuAQbK/vANArCw4oXjaAAEvu/pBwEDAvANAAA
	// [{1001 1004} {1005 1006}] 2 true <nil>
	// ackpolicy1:Smmia0MBAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
}
