package parity_test

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
)

// FuzzOpen opens objects that may be damaged anywhere or made to do harm, and
// rebuilds a damaged pack by them: it gets the pack or an error, and allocates
// no more than a few times what it was given.
func FuzzOpen(f *testing.F) {
	p := testPack(1, 5000)
	bad := erase(p, 700, 400)
	o := testObject(f, p, 2)
	f.Add(o, bad)
	f.Add(o[:len(o)-300], bad)
	f.Add(append(make([]byte, 150), o[150:]...), bad)
	f.Add(withHead(o, 1, 255, 512, 1<<30), bad)
	f.Add(withHead(o, 1, 1, 512, 1<<20), bad)
	f.Add(withHead(o, 1, 2, 1<<20, 5000), bad)
	f.Fuzz(func(t *testing.T, o, bad []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var got []byte
		x, err := parity.Open(testName, o)
		if err == nil {
			got, _, err = x.Rebuild(bad)
		}
		runtime.ReadMemStats(&after)
		if n, limit := after.TotalAlloc-before.TotalAlloc, uint64(8*(len(o)+len(bad))+8<<20); n > limit {
			t.Errorf("%d and %d bytes made it allocate %d", len(o), len(bad), n)
		}
		if err != nil {
			return
		}
		if int64(len(got)) != x.Size() || len(got) < 86 {
			t.Fatalf("%d bytes, the pack has %d", len(got), x.Size())
		}
		if d := chunk.Digest(got[:len(got)-32]); !bytes.Equal(d[:], got[len(got)-32:]) {
			t.Error("what was rebuilt does not prove itself")
		}
	})
}

// withHead gives an object other numbers, with a hash that fits.
func withHead(o []byte, k, m byte, shard, size uint32) []byte {
	o = bytes.Clone(o)
	h := o[38 : 38+96]
	h[1], h[2] = k, m
	for i := range 4 {
		h[4+i], h[8+i] = byte(shard>>(8*i)), byte(size>>(8*i))
	}
	d := chunk.Digest(h[:64])
	copy(h[64:], d[:])
	return o
}
