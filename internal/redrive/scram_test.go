package redrive

import (
	"crypto/sha1"
	"crypto/sha256"
	"hash"
	"testing"
)

// The examples of RFC 5802 and RFC 7677.
func TestScram(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		hash                                      func() hash.Hash
		nonce, first, challenge, proof, confirmed string
	}{
		{
			sha1.New, "fyko+d2lbbFgONRv9qkxdawL", "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
			"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
			"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
			"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
		},
		{
			sha256.New, "rOprNGfwEbeRWgbNEkqO", "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
			"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
			"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
			"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
		},
	} {
		begin := func() *scram {
			s := newScram(test.hash)
			s.nonce = func() string { return test.nonce }
			check(t, s.Begin("user", "pencil", ""))
			if first, err := s.Step(""); err != nil || first != test.first {
				t.Errorf("first: %q, %v", first, err)
			}
			return s
		}
		s := begin()
		if proof, err := s.Step(test.challenge); err != nil || proof != test.proof {
			t.Errorf("proof: %q, %v", proof, err)
		}
		if s.Done() {
			t.Error("done before the server proved itself")
		}
		if _, err := s.Step(test.confirmed); err != nil || !s.Done() {
			t.Errorf("end: %v", err)
		}
		if _, err := s.Step(""); err == nil {
			t.Error("goes on after the end")
		}
		for _, wrong := range []string{"", "v=", "v=AAAA", "e=invalid-proof"} {
			s := begin()
			_, err := s.Step(test.challenge)
			check(t, err)
			if _, err := s.Step(wrong); err == nil {
				t.Errorf("the server may answer %q", wrong)
			}
		}
		for _, wrong := range []string{"", "e=no", "r=other,s=QSXC,i=4096", "r=" + test.nonce + ",s=QSXC,i=4096", "r=" + test.nonce + "x,s=QSXC,i=1",
			"r=" + test.nonce + "x,s=QSXC,i=2000000000", "r=" + test.nonce + "x,s=,i=4096"} {
			if _, err := begin().Step(wrong); err == nil {
				t.Errorf("the server may ask %q", wrong)
			}
		}
	}
	s := newScram(sha256.New)
	check(t, s.Begin("a=b,c", "x", ""))
	if first, _ := s.Step(""); first[:len("n,,n=a=3Db=2Cc,r=")] != "n,,n=a=3Db=2Cc,r=" {
		t.Errorf("a user's name is not escaped: %q", first)
	}
}
