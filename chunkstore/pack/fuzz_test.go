package pack_test

import (
	"bytes"
	"reflect"
	"runtime"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// allocated returns how many bytes do allocates, and whatever else runs then.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// slack is what the test's own machinery may allocate beside what is measured.
const slack = 1 << 20

// trailerFactor is how many bytes ParseTrailer may allocate for each byte that
// it reads: a frame without chunks takes four, and 64 in memory, and a list that
// grows is copied.
const trailerFactor = 256

func FuzzParseHeader(f *testing.F) {
	f.Add(frozen(f, "v1-header.bin", nil))
	f.Add(frozen(f, "v1-pack.bin", nil)[:2000])
	f.Fuzz(func(t *testing.T, p []byte) {
		h, n, err := pack.ParseHeader(p)
		if err != nil {
			return
		}
		if n > len(p) || n > pack.MaxHeader {
			t.Fatalf("%d bytes of %d", n, len(p))
		}
		if !bytes.Equal(pack.AppendHeader(nil, h), p[:n]) {
			t.Error("written again it is other bytes")
		}
	})
}

func FuzzParseTrailer(f *testing.F) {
	f.Add(frozen(f, "v1-trailer.bin", nil))
	f.Add([]byte{1})
	f.Add([]byte{1, 8<<3 | 2, 0, 8<<3 | 2, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		var tr *pack.Trailer
		var err error
		if n := allocated(func() { tr, err = pack.ParseTrailer(p) }); n > uint64(trailerFactor*len(p)+slack) {
			t.Errorf("%d bytes made it allocate %d", len(p), n)
		}
		if err != nil {
			return
		}
		tr.Locations(func(_ chunk.ID, loc pack.Location) {
			if loc.Plain > seal.MaxFrame || uint64(loc.Start)+uint64(loc.Len) > uint64(loc.Plain) {
				t.Errorf("location %+v", loc)
			}
		})
		again, err := pack.ParseTrailer(pack.AppendTrailer(nil, tr))
		if err != nil || !sameTrailer(again, tr) {
			t.Errorf("written and read again: %+v, %v; was %+v", again, err, tr)
		}
	})
}

// sameTrailer compares but for nil and empty.
func sameTrailer(a, b *pack.Trailer) bool {
	x, y := *a, *b
	if len(x.Wrapped) == 0 && len(y.Wrapped) == 0 {
		x.Wrapped, y.Wrapped = nil, nil
	}
	if len(x.Signature) == 0 && len(y.Signature) == 0 {
		x.Signature, y.Signature = nil, nil
	}
	return reflect.DeepEqual(x, y)
}

// FuzzReadTrailer reads packs that may be damaged anywhere: only the one that
// was written is accepted.
func FuzzReadTrailer(f *testing.F) {
	k := testKeys(f)
	good := frozen(f, "v1-pack.bin", nil)
	x := build(f, k, pack.Data, []int{100, 1, 3000}, []int{200})
	f.Add(good)
	f.Add(x.bytes)
	f.Add(good[:200])
	f.Fuzz(func(t *testing.T, p []byte) {
		var tr *pack.Trailer
		var err error
		n := allocated(func() { tr, err = pack.ReadTrailer(k, x.trailer.Name, int64(len(p)), reader(p)) })
		if max := uint64(8*len(p) + slack); n > max {
			t.Errorf("%d bytes made it allocate %d", len(p), n)
		}
		if err != nil {
			return
		}
		if tr.Name != x.trailer.Name || tr.Size != int64(len(p)) || len(tr.Frames) != 2 {
			t.Errorf("a pack that nobody wrote: %+v", tr)
		}
	})
}
