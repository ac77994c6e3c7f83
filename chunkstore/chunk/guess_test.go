package chunk

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// mutate changes data a little, as programs change files: bytes and pages
// overwritten, zeros written and overwritten, bytes put in and taken out, the
// end cut off or moved on.
func mutate(r *rand.Rand, data []byte) []byte {
	data = bytes.Clone(data)
	for range 1 + r.IntN(4) {
		if len(data) == 0 {
			return randomBytes(r, 10_000)
		}
		at := r.IntN(len(data))
		n := min(1+r.IntN(10_000), len(data)-at)
		switch r.IntN(8) {
		case 0:
			data[at] ^= 1
		case 1:
			noise(r).Read(data[at : at+n])
		case 2:
			clear(data[at : at+n])
		case 3:
			data = append(data[:at:at], append(randomBytes(r, n), data[at:]...)...)
		case 4:
			data = append(data[:at:at], append(make([]byte, n), data[at:]...)...)
		case 5:
			data = append(data[:at:at], data[at+n:]...)
		case 6:
			data = data[:at]
		case 7:
			data = append(data, make([]byte, r.IntN(2*ZeroRun))...)
		}
	}
	return data
}

// guessing cuts r as a snapshot does: it tries the extents of the previous
// version that start at the same offset, or, by a shift, at another.
func guessing(c *Cutter, r io.Reader, old []Piece, shift int64) (all []Piece, hits int, err error) {
	c.Reset(r)
	starts := make(map[int64]Piece)
	var off int64
	for _, p := range old {
		starts[off+shift] = p
		off += p.Len
	}
	for off = 0; ; {
		var p Piece
		hit := false
		if was, ok := starts[off]; ok && (was.End == EndSplitter || was.End == EndMax) {
			p, hit, err = c.Guess(was.Len, func(data []byte) bool { return bytes.Equal(data, was.Data) })
			if err != nil {
				return all, hits, err
			}
		}
		if hit {
			hits++
		} else if p, err = c.Next(); err == io.EOF {
			return all, hits, nil
		} else if err != nil {
			return all, hits, err
		}
		p.Data = bytes.Clone(p.Data)
		all = append(all, p)
		off += p.Len
	}
}

func TestGuessCutsWhereNextWould(t *testing.T) {
	bothKinds(t, func(t *testing.T, p Params) {
		r := seeded(t)
		c, err := NewCutter(p)
		if err != nil {
			t.Fatal(err)
		}
		hits := 0
		for i := range 30 {
			before := mixed(r, r.IntN(200_000))
			after := mutate(r, before)
			var src io.Reader = bytes.NewReader(after)
			if i%4 == 0 {
				src = randomReader{r, src}
			}
			shift := int64(0)
			if i%3 == 0 {
				shift = int64(len(after) - len(before))
			}
			got, n, err := guessing(c, src, plainCut(p, before), shift)
			if err != nil {
				t.Fatal(err)
			}
			if err := samePieces(got, plainCut(p, after)); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			hits += n
		}
		if hits == 0 {
			t.Error("no guess ever came true")
		}
	})
}

// Where a file is unchanged, every chunk but those at zero runs and at the end
// is guessed.
func TestGuessUnchanged(t *testing.T) {
	bothKinds(t, func(t *testing.T, p Params) {
		data := mixed(seeded(t), 400_000)
		old := plainCut(p, data)
		want := 0
		for _, piece := range old {
			if piece.End == EndSplitter || piece.End == EndMax {
				want++
			}
		}
		c, err := NewCutter(p)
		if err != nil {
			t.Fatal(err)
		}
		got, hits, err := guessing(c, bytes.NewReader(data), old, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := samePieces(got, old); err != nil {
			t.Fatal(err)
		}
		if hits != want {
			t.Errorf("%d guesses came true, want %d", hits, want)
		}
	})
}

// endsInZero returns a chunk of random bytes that ends in one zero byte.
func endsInZero(t *testing.T, p Params) Piece {
	r := rand.New(rand.NewPCG(8, 8))
	for range 100 {
		for _, piece := range cutAll(t, p, bytes.NewReader(randomBytes(r, 200*p.Avg))) {
			if piece.End == EndSplitter && trailingZeros(piece.Data) == 1 {
				return piece
			}
		}
	}
	t.Fatal("no chunk ends in a zero byte")
	return Piece{}
}

// Chunks that end in zeros, with every number of zeros behind them.
func TestGuessZerosBehind(t *testing.T) {
	bothKinds(t, func(t *testing.T, p Params) {
		// Rabin cuts behind 64 zeros, Gear at the maximum.
		many := append(bytes.Repeat([]byte{3}, p.Min-window), make([]byte, 100)...)
		if p.Kind == Gear {
			many = append(bytes.Repeat([]byte{3}, p.Max-100), make([]byte, 100)...)
		}
		c, err := NewCutter(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, was := range []Piece{plainCut(p, many)[0], endsInZero(t, p)} {
			tail := trailingZeros(was.Data)
			if was.End == EndFile || tail == 0 {
				t.Fatalf("the chunk is of no use: end %d, %d zeros at its end", was.End, tail)
			}
			for _, zeros := range []int{0, 1, ZeroRun - tail - 1, ZeroRun - tail, ZeroRun - tail + 1, ZeroRun, 2 * ZeroRun} {
				for _, behind := range []int{0, 1, 5000} {
					data := append(append(bytes.Clone(was.Data), make([]byte, zeros)...), bytes.Repeat([]byte{9}, behind)...)
					got, hits, err := guessing(c, iotest.HalfReader(bytes.NewReader(data)), []Piece{was}, 0)
					if err != nil {
						t.Fatal(err)
					}
					if err := samePieces(got, plainCut(p, data)); err != nil {
						t.Errorf("%d zeros, %d more and %d bytes behind: %v", tail, zeros, behind, err)
					}
					if wantHit := zeros+tail < ZeroRun; (hits == 1) != wantHit {
						t.Errorf("%d zeros, %d more and %d bytes behind: guess %v, want %v", tail, zeros, behind, hits == 1, wantHit)
					}
				}
			}
		}
	})
}

func TestGuessRefuses(t *testing.T) {
	p := testParams(t, Rabin, MinAvg)
	data := randomBytes(seeded(t), 100_000)
	first := plainCut(p, data)[0]
	c, err := NewCutter(p)
	if err != nil {
		t.Fatal(err)
	}
	c.Reset(bytes.NewReader(data))
	never := func([]byte) bool { t.Error("asked about bytes that cannot be a chunk"); return true }
	for _, want := range []int64{-1, 0, int64(p.Min) - 1, int64(p.Max) + 1, 1 << 62, first.Len - 1} {
		if _, hit, err := c.Guess(want, never); hit || err != nil {
			t.Errorf("%d bytes: got %v, %v", want, hit, err)
		}
	}
	if _, hit, err := c.Guess(first.Len, func([]byte) bool { return false }); hit || err != nil {
		t.Errorf("other bytes: got %v, %v", hit, err)
	}
	rest, err := pieces(c) // nothing was consumed
	if err != nil {
		t.Fatal(err)
	}
	if err := samePieces(rest, plainCut(p, data)); err != nil {
		t.Error(err)
	}
	c.Reset(bytes.NewReader(data[:p.Min]))
	if _, hit, err := c.Guess(int64(p.Min)+1, never); hit || err != nil {
		t.Errorf("behind the end: got %v, %v", hit, err)
	}
	broken := errors.New("the disk is broken")
	c.Reset(iotest.ErrReader(broken))
	if _, hit, err := c.Guess(int64(p.Min), never); hit || err != broken {
		t.Errorf("a broken reader: got %v, %v", hit, err)
	}
}
