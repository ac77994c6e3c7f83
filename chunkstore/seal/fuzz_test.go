package seal_test

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
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

// slack is what the test's own machinery, and a decoder used for the first
// time, may allocate beside what is measured.
const slack = 8 << 20

func FuzzParse(f *testing.F) {
	k := testKeys(f)
	for _, name := range []string{"v1-object-clear.bin", "v1-object-list.bin", "v1-object-epoch.bin", "v1-object-unsigned.bin"} {
		f.Add(frozen(f, name, nil))
	}
	f.Add([]byte(seal.Magic))
	f.Fuzz(func(t *testing.T, p []byte) {
		n := allocated(func() {
			parse(t, k, p)
			if len(p) > 32 {
				parse(t, k, rehash(p)) // else nothing gets past the hash
			}
		})
		if max := uint64(8*len(p) + slack); n > max {
			t.Errorf("%d bytes made Parse and Open allocate %d, want at most %d", len(p), n, max)
		}
	})
}

func parse(t *testing.T, k *seal.Keys, p []byte) {
	o, err := seal.Parse(p)
	if err != nil {
		if o != nil {
			t.Error("an object beside an error")
		}
		return
	}
	if len(o.Body)+len(o.Wrapped) > len(p) || o.Version != seal.Version {
		t.Errorf("parsed %d bytes as %+v", len(p), o)
	}
	if o.Sealing == seal.Clear && o.Writer == (seal.WriterID{}) {
		return
	}
	if k.Open("frozen/1", o) == nil && !bytes.Contains(o.Body, []byte("cutbank")) {
		t.Errorf("an object opened that nobody had sealed: %q", o.Body)
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add(seal.AppendFrame(nil, [][]byte{[]byte("one"), {}, []byte("three")}))
	f.Add(seal.AppendFrame(nil, nil))
	f.Add(seal.AppendFrame(nil, [][]byte{bytes.Repeat([]byte("x"), 300)}))
	f.Fuzz(func(t *testing.T, p []byte) {
		var chunks [][]byte
		var err error
		n := allocated(func() { chunks, err = seal.ParseFrame(p) })
		if max := uint64(32*len(p) + 64<<10); n > max {
			t.Errorf("%d bytes made it allocate %d", len(p), n)
		}
		if err != nil {
			return
		}
		again, err := seal.ParseFrame(seal.AppendFrame(nil, chunks))
		if err != nil || len(again) != len(chunks) || !bytes.Equal(bytes.Join(again, nil), bytes.Join(chunks, nil)) {
			t.Errorf("written and read again it is another frame: %v", err)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	f.Add(seal.Compress(nil, []byte("some text, some text, some text")), 1000)
	f.Add(seal.Compress(nil, make([]byte, 1<<20)), 1<<20)
	f.Add(seal.Compress(nil, nil), 0)
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}, 10) // a skippable frame
	f.Fuzz(func(t *testing.T, p []byte, limit int) {
		limit &= 1<<22 - 1
		var out []byte
		var err error
		n := allocated(func() { out, err = seal.Decompress(nil, p, limit) })
		if len(out) > limit {
			t.Errorf("%d bytes came out where %d are allowed", len(out), limit)
		}
		if max := uint64(2*limit + slack); n > max {
			t.Errorf("%d bytes made it allocate %d where %d are allowed", len(p), n, limit)
		}
		if err != nil && len(out) > 0 {
			t.Error("bytes beside an error")
		}
	})
}

// FuzzOpenFrame opens a frame that holds anything, as one who has the keys
// could have sealed it.
func FuzzOpenFrame(f *testing.F) {
	key := seal.NewFrameKey(make([]byte, 32), []byte("pack"))
	for _, plain := range []string{"", "short", "repeated repeated repeated repeated repeated"} {
		f.Add(seal.Pack(nil, []byte(plain), seal.Default))
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		stored := key.Seal(nil, 0, packed)
		var plain []byte
		var err error
		n := allocated(func() { plain, err = key.Open(nil, 0, stored) })
		if n > seal.MaxFrame+slack {
			t.Errorf("%d bytes made it allocate %d", len(packed), n)
		}
		if err != nil {
			return
		}
		if got, err := key.Open(nil, 0, key.Seal(nil, 0, seal.Pack(nil, plain, seal.Fastest))); err != nil || chunk.Digest(got) != chunk.Digest(plain) {
			t.Errorf("sealed and opened again it is another frame: %v", err)
		}
	})
}
