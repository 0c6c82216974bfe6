package chaos

import (
	"slices"
	"testing"
)

func TestLedger(t *testing.T) {
	dir := t.TempDir()
	for member := range 2 {
		ledger, err := OpenLedger(dir, member)
		if err != nil {
			t.Fatal(err)
		}
		ledger.Write(Delivered, ID{3, 5}, 2, "")
		ledger.Write(Returned, ID{3, 5}, 2, "ack true")
		if _, err := ledger.file.WriteString("12345 0 deli"); err != nil { // a crash of the machine
			t.Fatal(err)
		}
		if err := ledger.Close(); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := ReadLedgers(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, e := range entries {
		if i > 0 && e.At < entries[i-1].At {
			t.Error("not in the order of time")
		}
		e.At = 0
		got = append(got, e.String())
	}
	want := []string{"0 0 delivered 3 5 2 ", "0 0 returned 3 5 2 ack true", "0 1 delivered 3 5 2 ", "0 1 returned 3 5 2 ack true"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
