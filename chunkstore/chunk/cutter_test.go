package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/iotest"

	"github.com/restic/chunker"
)

// seeded returns a random source and prints how to get it again.
func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	if s := os.Getenv("CUTBANK_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("CUTBANK_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// noise returns an endless reader of random bytes.
func noise(r *rand.Rand) io.Reader {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], r.Uint64())
	return rand.NewChaCha8(seed)
}

func randomBytes(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	noise(r).Read(p)
	return p
}

// testParams does not search for a polynomial, which takes a while.
func testParams(_ testing.TB, kind SplitterKind, avg int) Params {
	return Params{Kind: kind, Min: avg / 2, Avg: avg, Max: 4 * avg, Secret: 0x3DA3358B4DC173}
}

// bothKinds runs f for every splitter, with small chunks.
func bothKinds(t *testing.T, f func(t *testing.T, p Params)) {
	for _, kind := range []SplitterKind{Rabin, Gear} {
		for _, avg := range []int{MinAvg, 8 << 10} {
			t.Run(fmt.Sprintf("%s-%d", kind, avg), func(t *testing.T) { f(t, testParams(t, kind, avg)) })
		}
	}
}

// mixed makes data of all that matters to a Cutter: noise, zero runs around
// the limit and longer, constant runs, repeated and short texts.
func mixed(r *rand.Rand, n int) []byte {
	runs := []int{1, 63, 64, 65, 500, 2000, ZeroRun - 1, ZeroRun, ZeroRun + 1, 3 * ZeroRun, 70_000}
	p := make([]byte, 0, n)
	for len(p) < n {
		switch r.IntN(6) {
		case 0, 1, 2:
			p = append(p, randomBytes(r, 1+r.IntN(20_000))...)
		case 3, 4:
			p = append(p, make([]byte, runs[r.IntN(len(runs))])...)
		case 5:
			p = append(p, bytes.Repeat([]byte{byte(r.Uint32())}, 1+r.IntN(10_000))...)
		}
	}
	return p[:n]
}

// pieces collects what c returns; data is copied.
func pieces(c *Cutter) ([]Piece, error) {
	var all []Piece
	for {
		p, err := c.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		p.Data = bytes.Clone(p.Data)
		all = append(all, p)
	}
}

func cutAll(t testing.TB, p Params, r io.Reader) []Piece {
	t.Helper()
	c, err := NewCutter(p)
	if err != nil {
		t.Fatal(err)
	}
	c.Reset(r)
	all, err := pieces(c)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func samePieces(a, b []Piece) error {
	var off int64
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		if x.Len != y.Len || x.Zero != y.Zero || x.End != y.End || !bytes.Equal(x.Data, y.Data) {
			return fmt.Errorf("piece %d at %d: got len %d zero %v end %d, want len %d zero %v end %d", i, off, x.Len, x.Zero, x.End, y.Len, y.Zero, y.End)
		}
		off += x.Len
	}
	if len(a) != len(b) {
		return fmt.Errorf("got %d pieces, want %d", len(a), len(b))
	}
	return nil
}

// zeroRunAt returns the length of the run of zeros at off.
func zeroRunAt(data []byte, off int) int {
	n := 0
	for off+n < len(data) && data[off+n] == 0 {
		n++
	}
	return n
}

// plainCut is the package's rules written down as simply as possible.
func plainCut(p Params, data []byte) []Piece {
	var all []Piece
	for off := 0; off < len(data); {
		if n := zeroRunAt(data, off); n >= ZeroRun {
			end := EndZero
			if off+n == len(data) {
				end = EndFile
			}
			all = append(all, Piece{Len: int64(n), Zero: true, End: end})
			off += n
			continue
		}
		stop, end := len(data), EndFile
		for i := off; i < len(data) && i <= off+p.Max; {
			n := zeroRunAt(data, i)
			if n >= ZeroRun {
				stop, end = i, EndZero
				break
			}
			i += n + 1
		}
		if n := plainSplit(p, data[off:stop]); n == p.Max {
			stop, end = off+n, EndMax
		} else if n > 0 {
			stop, end = off+n, EndSplitter
		}
		all = append(all, Piece{Data: data[off:stop], Len: int64(stop - off), End: end})
		off = stop
	}
	return all
}

// plainSplit returns where p cuts data, or 0: Gear without skipping anything,
// and the library.
func plainSplit(p Params, data []byte) int {
	if p.Kind == Rabin {
		c := chunker.NewBase(chunker.Pol(p.Secret), chunker.WithBaseBoundaries(uint(p.Min), uint(p.Max)), chunker.WithBaseAverageBits(p.cutBits()))
		return max(0, c.NextSplitPoint(data))
	}
	table, h := gearTable(p.Secret), uint64(0)
	for i, b := range data {
		h = h<<1 + table[b]
		if n := i + 1; n == p.Max || n >= p.Min && h < 1<<63/uint64(p.Avg)*4 {
			return n
		}
	}
	return 0
}

func TestCutterFollowsTheRules(t *testing.T) {
	bothKinds(t, func(t *testing.T, p Params) {
		r := seeded(t)
		for range 6 {
			data := mixed(r, r.IntN(300_000))
			if err := samePieces(cutAll(t, p, bytes.NewReader(data)), plainCut(p, data)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The default size too, over more than one buffer.
func TestCutterLarge(t *testing.T) {
	r := seeded(t)
	data := mixed(r, 3<<20)
	for _, kind := range []SplitterKind{Rabin, Gear} {
		p := testParams(t, kind, DefaultAvg)
		if err := samePieces(cutAll(t, p, bytes.NewReader(data)), plainCut(p, data)); err != nil {
			t.Fatal(kind, err)
		}
	}
}

// randomReader reads in pieces of random length, and sometimes nothing.
type randomReader struct {
	r   *rand.Rand
	src io.Reader
}

func (x randomReader) Read(p []byte) (int, error) {
	return x.src.Read(p[:x.r.IntN(min(len(p), 9000)+1)])
}

func TestCutterReadSizes(t *testing.T) {
	bothKinds(t, func(t *testing.T, p Params) {
		r := seeded(t)
		data := mixed(r, 1_500_000)
		want := cutAll(t, p, bytes.NewReader(data))
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"half":    iotest.HalfReader,
			"dataerr": iotest.DataErrReader,
			"random":  func(src io.Reader) io.Reader { return randomReader{r, src} },
		} {
			if err := samePieces(cutAll(t, p, wrap(bytes.NewReader(data))), want); err != nil {
				t.Fatal(name, err)
			}
		}
		data = data[:100_000]
		if err := samePieces(cutAll(t, p, iotest.OneByteReader(bytes.NewReader(data))), cutAll(t, p, bytes.NewReader(data))); err != nil {
			t.Fatal("one byte", err)
		}
	})
}

// A zero run of every interesting length, at every interesting place.
func TestCutterZeroRuns(t *testing.T) {
	p := testParams(t, Gear, 8<<10)
	dull := func(n int) []byte { return bytes.Repeat([]byte{1, 2, 3}, n/3+1)[:n] } // Gear finds no cut in it
	for _, before := range []int{0, 1, p.Min - 1, p.Min, p.Max - ZeroRun, p.Max - 1, p.Max, minBuffer - 1, minBuffer - ZeroRun + 1} {
		for _, run := range []int{1, ZeroRun - 1, ZeroRun, ZeroRun + 1, minBuffer + 5} {
			for _, after := range []int{0, 1, ZeroRun} {
				data := append(append(dull(before), make([]byte, run)...), dull(after)...)
				if err := samePieces(cutAll(t, p, bytes.NewReader(data)), plainCut(p, data)); err != nil {
					t.Errorf("%d bytes, %d zeros, %d bytes: %v", before, run, after, err)
				}
			}
		}
	}
}

// zeroReader is n zeros without their memory.
type zeroReader struct{ n int64 }

func (z *zeroReader) Read(p []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	m := int(min(int64(len(p)), z.n))
	clear(p[:m])
	z.n -= int64(m)
	return m, nil
}

func TestCutterLongZeroRunIsOnePiece(t *testing.T) {
	const size = 64<<20 + 1
	p := testParams(t, Gear, DefaultAvg)
	got := cutAll(t, p, &zeroReader{size})
	if len(got) != 1 || !got[0].Zero || got[0].Len != size || got[0].End != EndFile {
		t.Fatalf("got %+v", got)
	}
}

func TestCutterErrors(t *testing.T) {
	p := testParams(t, Rabin, MinAvg)
	c, err := NewCutter(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next(); err != io.EOF {
		t.Errorf("before Reset: got %v, want io.EOF", err)
	}
	r := seeded(t)
	broken := errors.New("the disk is broken")
	for _, data := range [][]byte{nil, randomBytes(r, 10), randomBytes(r, 50_000), make([]byte, 100), make([]byte, 50_000)} {
		c.Reset(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)))
		got, err := pieces(c)
		if !errors.Is(err, broken) {
			t.Errorf("%d bytes: got %v, want the reader's error", len(data), err)
		}
		if _, err := c.Next(); !errors.Is(err, broken) {
			t.Errorf("%d bytes: then got %v, want the reader's error again", len(data), err)
		}
		whole := plainCut(p, data)
		if len(whole) > 0 {
			whole = whole[:len(whole)-1] // the interrupted piece must not come
		}
		if err := samePieces(got, whole); err != nil {
			t.Errorf("%d bytes: %v", len(data), err)
		}
	}
	c.Reset(bytes.NewReader([]byte("again")))
	if got, err := pieces(c); err != nil || len(got) != 1 || string(got[0].Data) != "again" {
		t.Errorf("after Reset: got %v, %v", got, err)
	}
	c.Reset(stuck{})
	if _, err := c.Next(); err != io.ErrNoProgress {
		t.Errorf("a reader that returns nothing: got %v, want io.ErrNoProgress", err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestCutterAllocatesNothingPerPiece(t *testing.T) {
	for _, kind := range []SplitterKind{Rabin, Gear} {
		data := mixed(seeded(t), 1<<20)
		c, err := NewCutter(testParams(t, kind, 8<<10))
		if err != nil {
			t.Fatal(err)
		}
		src := bytes.NewReader(data)
		run := func() {
			src.Reset(data)
			c.Reset(src)
			for {
				if _, err := c.Next(); err != nil {
					return
				}
			}
		}
		if n := testing.AllocsPerRun(3, run); n > 0 {
			t.Errorf("%s: %v allocations for 1 MiB, want none", kind, n)
		}
	}
}

func FuzzCutter(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 3))
	f.Add([]byte{}, false, uint16(1))
	f.Add(mixed(r, 20_000), true, uint16(4097))
	f.Add(make([]byte, ZeroRun), false, uint16(100))
	f.Fuzz(func(t *testing.T, data []byte, useGear bool, stretch uint16) {
		kind := Rabin
		if useGear {
			kind = Gear
		}
		p := testParams(t, kind, MinAvg)
		// A fuzzer finds no long runs by itself: let it say where one is.
		if at := int(stretch); at < len(data) {
			data = append(append(bytes.Clone(data[:at]), make([]byte, ZeroRun-1)...), data[at:]...)
		}
		var joined []byte
		last := Piece{}
		for i, piece := range cutAll(t, p, bytes.NewReader(data)) {
			switch {
			case piece.Zero && (piece.Len < ZeroRun || piece.Data != nil):
				t.Fatalf("piece %d: a zero run of %d bytes", i, piece.Len)
			case piece.Zero && last.Zero:
				t.Fatalf("piece %d: two zero runs side by side", i)
			case piece.Zero:
				if n := len(joined); n > 0 && joined[n-1] == 0 {
					t.Fatalf("piece %d: the zero run started earlier", i)
				}
				joined = append(joined, make([]byte, piece.Len)...)
			case piece.Len != int64(len(piece.Data)) || len(piece.Data) == 0 || len(piece.Data) > p.Max:
				t.Fatalf("piece %d: length %d of %d bytes", i, piece.Len, len(piece.Data))
			case last.Zero && piece.Data[0] == 0:
				t.Fatalf("piece %d: the zero run before it went on", i)
			case (piece.End == EndSplitter || piece.End == EndMax) && len(piece.Data) < p.Min:
				t.Fatalf("piece %d: %d bytes, less than the minimum", i, len(piece.Data))
			case (piece.End == EndMax) != (len(piece.Data) == p.Max):
				t.Fatalf("piece %d: end %d at %d bytes", i, piece.End, len(piece.Data))
			default:
				joined = append(joined, piece.Data...)
			}
			last = piece
		}
		if !bytes.Equal(joined, data) {
			t.Fatalf("the pieces of %d bytes make %d others", len(data), len(joined))
		}
		if err := samePieces(cutAll(t, p, iotest.HalfReader(bytes.NewReader(data))), plainCut(p, data)); err != nil {
			t.Fatal(err)
		}
	})
}
