package chunkstore

import (
	"bytes"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// A frame of which a part is here is whole, though that part has to go to make
// room for the rest. Limits are those of a piece, which no test outside can reach
// with frames of a pack.
func TestFetchAcrossDropped(t *testing.T) {
	b := backend.NewMem()
	name := pack.Name{1}
	want := make([]byte, 1000)
	for i := range want {
		want[i] = byte(i)
	}
	if err := b.Put(t.Context(), name.Object(), want); err != nil {
		t.Fatal(err)
	}
	for limit := int64(0); limit < 300; limit += 10 {
		f := newFetcher(b, limit)
		for _, at := range [][2]int64{{0, 50}, {40, 30}, {65, 200}, {10, 300}, {299, 1}, {290, 50}} {
			p, err := f.fetch(t.Context(), place{pack: name, kind: pack.Data, size: 1000, off: at[0], n: at[1]})
			if err != nil || !bytes.Equal(p, want[at[0]:at[0]+at[1]]) {
				t.Errorf("limit %d, %d bytes at %d: got %d bytes, %v", limit, at[1], at[0], len(p), err)
			}
		}
		f.end()
	}
}
