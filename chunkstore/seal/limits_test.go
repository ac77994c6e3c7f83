package seal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// TestBodyLimits: a few kilobytes that a writer signs must not become hundreds of
// megabytes in everybody who lists the snapshots.
func TestBodyLimits(t *testing.T) {
	k := hostileKeys(t)
	random := rand.NewChaCha8([32]byte{2})
	zeros := make([]byte, maxSegment+1)
	for kind, limit := range map[Kind]int{KindSnapshot: MaxRecord, KindIntent: MaxRecord, KindSegment: maxSegment} {
		for _, s := range []Sealing{Clear, ForList} {
			what := fmt.Sprintf("%c, sealing %d", kind, s)
			p, err := k.Seal("x", kind, s, zeros[:limit], random)
			if err != nil {
				t.Fatal(err)
			}
			if o, err := k.OpenAs("x", kind, p); err != nil || len(o.Body) != limit {
				t.Errorf("%s: the largest: %v", what, err)
			}
			if _, err := k.Seal("x", kind, s, zeros[:limit+1], random); err == nil {
				t.Errorf("%s: a larger one is written", what)
			}
			for _, packed := range []bool{false, s != Clear} {
				o, body := Object{Kind: kind, Version: Version, Sealing: s, Writer: k.self, Compressed: packed}, zeros[:limit+1]
				if packed {
					body = compress(nil, body)
				}
				if _, err := k.OpenAs("x", kind, hostile(k, "x", o, bytes.Clone(body))); !errors.Is(err, chunk.ErrCorrupt) {
					t.Errorf("%s, packed %v: %v", what, packed, err)
				}
			}
		}
	}
}
