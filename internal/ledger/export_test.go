package ledger

import (
	"encoding/base64"
	"encoding/binary"
)

// bodyOf returns what a text's checksum covers.
func bodyOf(text string) []byte {
	data, err := base64.RawStdEncoding.DecodeString(text[len(prefix):])
	if err != nil {
		panic(err)
	}
	return data[4:]
}

// seal makes a text of what a checksum is to cover.
func seal(at Place, data []byte) string {
	sum := binary.BigEndian.AppendUint32(nil, checksum(at, data))
	return prefix + base64.RawStdEncoding.EncodeToString(append(sum, data...))
}
