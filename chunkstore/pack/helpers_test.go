package pack_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// frozen returns a file of testdata. These files are what version 1 of the
// format is: once committed, none of them ever changes. A new one is made by
// running its test with CUTBANK_FREEZE=1; what is there is never overwritten.
func frozen(tb testing.TB, name string, fresh func() []byte) []byte {
	tb.Helper()
	path := filepath.Join("testdata", name)
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("CUTBANK_FREEZE") == "1" {
		p = fresh()
		err = os.WriteFile(path, p, 0o644)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// testRandom is bytes from a seed, as good as random for tests.
func testRandom(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

// testKeys are those of the frozen ring, whose file never changes.
func testKeys(tb testing.TB) *seal.Keys { return open(tb, testRing(tb)) }

func testRing(tb testing.TB) *seal.Ring {
	tb.Helper()
	r := &seal.Ring{}
	if err := json.Unmarshal(frozen(tb, "v1-ring.json", nil), r); err != nil {
		tb.Fatal(err)
	}
	return r
}

func open(tb testing.TB, r *seal.Ring) *seal.Keys {
	tb.Helper()
	k, err := r.Open()
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// built is a pack and what is in it.
type built struct {
	bytes   []byte
	trailer *pack.Trailer
	chunks  [][][]byte // by frame
}

// build makes a pack of frames that hold chunks of these lengths.
func build(tb testing.TB, k *seal.Keys, kind pack.Kind, frames ...[]int) *built {
	tb.Helper()
	random := testRandom(1)
	b, err := pack.NewBuilder(k, kind, [16]byte{1, 2, 3}, random, nil)
	if err != nil {
		tb.Fatal(err)
	}
	x := &built{}
	var packed []byte
	for _, lens := range frames {
		var parts [][]byte
		var chunks []pack.Chunk
		for _, n := range lens {
			p := make([]byte, n)
			random.Read(p)
			parts = append(parts, p)
			chunks = append(chunks, pack.Chunk{ID: k.Data.Sum(p), Len: uint32(n)})
		}
		plain := seal.AppendFrame(nil, parts)
		packed = seal.Pack(packed, plain, seal.Fastest)
		before := b.Size()
		b.Add(packed, len(plain), chunks)
		if b.Size() != before+4+len(packed)-1+seal.FrameOverhead {
			tb.Errorf("a frame of %d packed bytes takes %d", len(packed), b.Size()-before)
		}
		x.chunks = append(x.chunks, parts)
	}
	if b.Frames() != len(frames) {
		tb.Errorf("%d frames, want %d", b.Frames(), len(frames))
	}
	name := b.Name()
	if x.bytes, x.trailer, err = b.Finish(k, random); err != nil {
		tb.Fatal(err)
	}
	if x.trailer.Name != name || x.trailer.Size != int64(len(x.bytes)) {
		tb.Errorf("the trailer names %s of %d bytes, the pack is %s of %d", x.trailer.Name, x.trailer.Size, name, len(x.bytes))
	}
	return x
}

// reader reads p as a backend would.
func reader(p []byte) pack.ReadAt {
	return func(off, n int64) ([]byte, error) {
		if off < 0 || n < 0 || off+n > int64(len(p)) {
			return nil, fmt.Errorf("%d bytes at %d of %d: %w", n, off, len(p), io.ErrUnexpectedEOF)
		}
		return append([]byte(nil), p[off:off+n]...), nil
	}
}

func (x *built) read(k *seal.Keys) (*pack.Trailer, error) {
	return pack.ReadTrailer(k, x.trailer.Name, int64(len(x.bytes)), reader(x.bytes))
}

// rehash makes the closing hash fit again.
func rehash(p []byte) []byte {
	d := chunk.Digest(p[:len(p)-32])
	return append(append([]byte(nil), p[:len(p)-32]...), d[:]...)
}

func wantErr(tb testing.TB, what string, err, want error) {
	tb.Helper()
	if err == nil || !errors.Is(err, want) {
		tb.Errorf("%s: error %v, want %v", what, err, want)
	}
}
