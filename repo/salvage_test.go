package repo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// onePack stores chunks of a thousand bytes, about three a frame, in one pack.
func onePack(t testing.TB, r *Repo) (*pack.Trailer, []byte) {
	t.Helper()
	rng := rand.NewChaCha8([32]byte{9})
	s := testBegin(t, r)
	st := s.Writer.Stream(pack.Data)
	for range 40 {
		p := make([]byte, 1000)
		rng.Read(p)
		if _, err := st.Put(r.k.Data.Sum(p), p); err != nil {
			t.Fatal(err)
		}
	}
	st.Flush()
	s.Abort(t.Context())
	var name pack.Name
	for n := range r.ix.Packs() {
		name = n
	}
	b := get(t, r.b, name.Object())
	tr, err := pack.ReadTrailer(r.k, name, int64(len(b)), func(off, n int64) ([]byte, error) { return b[off : off+n], nil })
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Frames) < 8 {
		t.Fatalf("only %d frames", len(tr.Frames))
	}
	return tr, b
}

func TestSalvage(t *testing.T) {
	r := testInit(t, backend.NewMem())
	tr, whole := onePack(t, r)
	frames := len(tr.Frames)
	of := func(i int) *pack.Frame { return &tr.Frames[i] }
	end := int(of(frames-1).Off + of(frames-1).Stored)
	fill := func(b []byte, from, n int, with byte) []byte {
		copy(b[from:from+n], bytes.Repeat([]byte{with}, n))
		return b
	}
	flip := func(b []byte, at int) []byte { b[at] ^= 0x40; return b }
	noTrailer := func(b []byte) []byte { return flip(b, end+20) }
	for _, c := range []struct {
		name   string
		damage func(b []byte) []byte
		listed bool // a segment lists the pack
		lost   int  // as it is told
		err    error
	}{
		{"nothing", func(b []byte) []byte { return b }, false, 0, nil},
		{"a byte of a frame", func(b []byte) []byte { return flip(b, int(of(3).Off)+5) }, false, 1, nil},
		{"a length, with a trailer", func(b []byte) []byte { return flip(b, int(of(3).Off)-2) }, false, 0, nil},
		{"the header, with a trailer", func(b []byte) []byte { return fill(b, 0, 200, 0) }, false, 0, nil},
		{"the header, with a listing", func(b []byte) []byte { return noTrailer(fill(b, 0, 200, 0)) }, true, 0, nil},
		{"the header and the trailer", func(b []byte) []byte { return noTrailer(fill(b, 0, 200, 0)) }, false, 0, chunk.ErrCorrupt},
		{"the trailer", noTrailer, false, 0, nil},
		{"the closing hash", func(b []byte) []byte { return flip(b, len(b)-1) }, false, 0, nil},
		{"the trailer's length", func(b []byte) []byte { return flip(b, len(b)-34) }, false, 1, nil}, // what follows the frames may be one,
		{"the trailer, and a frame", func(b []byte) []byte { return noTrailer(flip(b, int(of(3).Off)+5)) }, false, 1, nil},
		{"the trailer, and a length", func(b []byte) []byte { return noTrailer(flip(b, int(of(3).Off)-2)) }, false, 1, nil},
		{"the trailer, and a length of one byte less", func(b []byte) []byte { b[of(3).Off-4]--; return noTrailer(b) }, false, 1, nil},
		{"the trailer, and two lengths", func(b []byte) []byte { return noTrailer(flip(flip(b, int(of(3).Off)-2), int(of(5).Off)-2)) }, false, 2, nil},
		{"the trailer, and the first frame", func(b []byte) []byte { return noTrailer(flip(b, int(of(0).Off)-4)) }, false, 1, nil},
		{"the trailer, and a sector of zeros", func(b []byte) []byte { return noTrailer(fill(b, int(of(3).Off)+100, 4096, 0)) }, false, 2, nil},
		{"the trailer, and a sector of ones", func(b []byte) []byte { return noTrailer(fill(b, int(of(3).Off)+100, 4096, 255)) }, false, 2, nil},
		{"cut short in a frame", func(b []byte) []byte { return b[:of(5).Off+10] }, false, 1, nil}, // at least
		{"cut short in a frame, with a listing", func(b []byte) []byte { return b[:of(5).Off+10] }, true, frames - 5, nil},
		{"cut short behind a frame", func(b []byte) []byte { return b[:of(5).Off-4] }, false, 0, nil},
		{"bytes too many", func(b []byte) []byte { return append(b, 1, 2, 3) }, false, 1, nil},
		{"empty", func(b []byte) []byte { return nil }, false, 0, chunk.ErrCorrupt},
		{"empty, with a listing", func(b []byte) []byte { return nil }, true, frames, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.damage(bytes.Clone(whole))
			var listed []*pack.Trailer
			if c.listed {
				listed = append(listed, tr)
			}
			s, err := r.newSalvage(tr.Name, b, listed...)
			if !errors.Is(err, c.err) || c.err != nil {
				if c.err == nil || !errors.Is(err, c.err) {
					t.Fatalf("%v, want %v", err, c.err)
				}
				return
			}
			got := map[chunk.ID]bool{}
			read, lost, err := s.frames(func(f salvagedFrame) error {
				if len(f.chunks) != len(of(int(f.n)).Chunks) {
					return fmt.Errorf("frame %d has %d chunks", f.n, len(f.chunks))
				}
				for i, p := range f.chunks {
					if id := of(int(f.n)).Chunks[i].ID; r.k.Data.Sum(p) != id {
						return fmt.Errorf("chunk %d of frame %d is another", i, f.n)
					} else {
						got[id] = true
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			want := frames - c.lost
			switch {
			case len(b) < len(whole) && !c.listed:
				want = 5
			case c.name == "the trailer's length" || c.name == "bytes too many":
				want = frames
			}
			if len(got) < 3*want {
				t.Errorf("%d chunks in %d frames", len(got), want)
			}
			if read != want || lost != c.lost {
				t.Errorf("read %d frames, lost %d; want %d and %d", read, lost, want, c.lost)
			}
		})
	}
}

// TestSalvageIsBounded: a pack that is all lengths of frames does not keep a
// repair busy for ever.
func TestSalvageIsBounded(t *testing.T) {
	r := testInit(t, backend.NewMem())
	tr, whole := onePack(t, r)
	b := make([]byte, 4<<20)
	n := copy(b, whole[:tr.Frames[0].Off-4])
	for i := n; i+4 <= len(b); i += 4 {
		binary.LittleEndian.PutUint32(b[i:], 0x2000|0x200000|0x20)
	}
	s, err := r.newSalvage(tr.Name, b)
	if err != nil {
		t.Fatal(err)
	}
	s.max = seal.MaxFrame
	before := s.work
	start := time.Now()
	if read, _, err := s.frames(func(salvagedFrame) error { return nil }); read != 0 || err != nil {
		t.Errorf("%d frames, %v", read, err)
	}
	if used := before - s.work; used > before+seal.MaxFrame {
		t.Errorf("%d bytes were tried, %d were allowed", used, before)
	}
	t.Logf("%d MiB tried in %s", (before-s.work)>>20, time.Since(start).Round(time.Millisecond))
}
