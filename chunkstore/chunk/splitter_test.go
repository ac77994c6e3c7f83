package chunk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/restic/chunker"
)

func TestParamsValidate(t *testing.T) {
	rabin, gear := testParams(t, Rabin, DefaultAvg), testParams(t, Gear, DefaultAvg)
	for _, tt := range []struct {
		name   string
		from   Params
		change func(p *Params)
		want   string // part of the error; none if empty
	}{
		{"rabin", rabin, func(p *Params) {}, ""},
		{"gear", gear, func(p *Params) {}, ""},
		{"gear without a secret", gear, func(p *Params) { p.Secret = 0 }, ""},
		{"no kind", gear, func(p *Params) { p.Kind = "" }, "splitter"},
		{"no average", gear, func(p *Params) { p.Avg = 0 }, "average"},
		{"negative average", gear, func(p *Params) { p.Avg = -DefaultAvg }, "average"},
		{"odd average", gear, func(p *Params) { p.Avg++ }, "average"},
		{"huge average", gear, func(p *Params) { p.Avg = 2 * MaxAvg }, "average"},
		{"no minimum", rabin, func(p *Params) { p.Min = 0 }, "minimum"},
		{"minimum above the average", rabin, func(p *Params) { p.Min = p.Avg + 1 }, "minimum"},
		{"small maximum", rabin, func(p *Params) { p.Max = p.Avg }, "maximum"},
		{"huge maximum", rabin, func(p *Params) { p.Max = MaxSize + 1 }, "maximum"},
		{"no polynomial", rabin, func(p *Params) { p.Secret = 0 }, "polynomial"},
		{"polynomial of a large degree", rabin, func(p *Params) { p.Secret |= 1 << 60 }, "polynomial"},
		{"reducible polynomial", rabin, func(p *Params) { p.Secret &^= 1 }, "polynomial"},
	} {
		p := tt.from
		tt.change(&p)
		err := p.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want an error about %q", tt.name, err, tt.want)
		}
		if _, made := NewSplitter(p); (made == nil) != (err == nil) {
			t.Errorf("%s: NewSplitter says %v", tt.name, made)
		}
		if _, made := NewCutter(p); (made == nil) != (err == nil) {
			t.Errorf("%s: NewCutter says %v", tt.name, made)
		}
	}
}

func TestNewParams(t *testing.T) {
	for _, avg := range []int{MinAvg, DefaultAvg, MaxAvg} {
		p, err := NewParams(Gear, avg, noise(seeded(t)))
		if err != nil {
			t.Fatal(err)
		}
		if p.Min != avg/2 || p.Max != 4*avg {
			t.Errorf("average %d: %+v", avg, p)
		}
	}
	if p, err := DefaultParams(noise(seeded(t))); err != nil || p.Kind != Rabin || p.Avg != DefaultAvg {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, err := DefaultParams(strings.NewReader("short")); err == nil {
		t.Error("a secret out of too few random bytes: want an error")
	}
	if _, err := NewParams("fixed", DefaultAvg, noise(seeded(t))); err == nil {
		t.Error("an unknown kind: want an error")
	}
}

// Chunks of random data are as long as the parameters say.
func TestSplitterMean(t *testing.T) {
	for _, kind := range []SplitterKind{Rabin, Gear} {
		p := testParams(t, kind, 8<<10)
		data := randomBytes(rand.New(rand.NewPCG(5, 5)), 8<<20)
		n := len(cutAll(t, p, bytes.NewReader(data)))
		if mean := len(data) / n; mean < p.Avg*9/10 || mean > p.Avg*11/10 {
			t.Errorf("%s: mean %d, want about %d", kind, mean, p.Avg)
		}
	}
}

// Cuts are frozen: they are part of the format.
func TestSplitterFrozen(t *testing.T) {
	data := randomBytes(rand.New(rand.NewPCG(1, 2)), 1<<20)
	for _, tt := range []struct {
		kind SplitterKind
		want string
	}{
		{Rabin, "77702 71586 66757 40772 113993 54965 84679 56965 118004 36578 95083 57399 41832 47062 54160 31039"},
		{Gear, "66143 54345 77795 40743 55258 62533 38623 38452 49226 85480 45077 79502 54523 153785 44742 46833 44361 11155"},
	} {
		p := Params{Kind: tt.kind, Min: 32 << 10, Avg: 64 << 10, Max: 256 << 10, Secret: 0x3DA3358B4DC173}
		var lens []string
		for _, piece := range cutAll(t, p, bytes.NewReader(data)) {
			lens = append(lens, fmt.Sprint(piece.Len))
		}
		if got := strings.Join(lens, " "); got != tt.want {
			t.Errorf("%s: cuts moved:\n got %s\nwant %s", tt.kind, got, tt.want)
		}
	}
}

// The rabin splitter is the library's, whatever is done about its Reset.
func TestRabinIsTheLibrarys(t *testing.T) {
	p := testParams(t, Rabin, 8<<10)
	data := randomBytes(seeded(t), 1<<20)
	c := chunker.New(bytes.NewReader(data), chunker.Pol(p.Secret), chunker.WithBoundaries(uint(p.Min), uint(p.Max)), chunker.WithAverageBits(12))
	for i, piece := range cutAll(t, p, bytes.NewReader(data)) {
		want, err := c.Next(nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(piece.Data, want.Data) {
			t.Fatalf("chunk %d: %d bytes, the library has %d", i, len(piece.Data), len(want.Data))
		}
	}
}

// Next finds the same cuts however its input is split up.
func TestSplitterCarriesOver(t *testing.T) {
	bothKinds(t, func(t *testing.T, p Params) {
		r := seeded(t)
		data := mixed(r, 200_000)
		s, err := NewSplitter(p)
		if err != nil {
			t.Fatal(err)
		}
		for off := 0; off < len(data); {
			want := plainSplit(p, data[off:])
			got, at := -1, off
			for at < len(data) && got < 0 {
				n := min(1+r.IntN(1+r.IntN(5000)), len(data)-at)
				if got = s.Next(data[at : at+n]); got < 0 {
					at += n
				}
			}
			if got < 0 {
				if want != 0 {
					t.Fatalf("at %d: found no cut, want one after %d", off, want)
				}
				return
			}
			if at+got-off != want {
				t.Fatalf("at %d: cut after %d, want %d", off, at+got-off, want)
			}
			off = at + got
		}
	})
}

// Reset in the middle of a chunk leaves nothing of it.
func TestSplitterReset(t *testing.T) {
	bothKinds(t, func(t *testing.T, p Params) {
		data := randomBytes(seeded(t), 2*p.Max)
		s, err := NewSplitter(p)
		if err != nil {
			t.Fatal(err)
		}
		want := s.Next(data)
		s.Reset()
		for _, n := range []int{1, p.Min - window, p.Min - 1, want - 1} {
			s.Next(data[:n])
			s.Reset()
			if got := s.Next(data); got != want {
				t.Errorf("after %d bytes and Reset: cut after %d, want %d", n, got, want)
			}
			s.Reset()
		}
	})
}

// No run of one byte is a cut for Gear, whatever the secret; for Rabin zeros
// are.
func TestConstantRuns(t *testing.T) {
	r := seeded(t)
	for range 20 {
		p := Params{Kind: Gear, Min: MinAvg / 2, Avg: MinAvg, Max: 4 * MinAvg, Secret: r.Uint64()}
		s, err := NewSplitter(p)
		if err != nil {
			t.Fatal(err)
		}
		for b := range 256 {
			if n := s.Next(bytes.Repeat([]byte{byte(b)}, p.Max)); n != p.Max {
				t.Fatalf("secret %#x, byte %#x: cut after %d", p.Secret, b, n)
			}
		}
	}
	p := testParams(t, Rabin, DefaultAvg)
	s, err := NewSplitter(p)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.Next(make([]byte, p.Max)); n != p.Min {
		t.Errorf("rabin cuts zeros after %d; the documentation says at the minimum", n)
	}
}

func BenchmarkSplitter(b *testing.B) {
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), 16<<20)
	for _, kind := range []SplitterKind{Rabin, Gear} {
		for _, avg := range []int{16 << 10, 64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s-%dK", kind, avg>>10), func(b *testing.B) {
				s, err := NewSplitter(testParams(b, kind, avg))
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					for p := data; len(p) > 0; {
						n := s.Next(p)
						if n < 0 {
							s.Reset()
							break
						}
						p = p[n:]
					}
				}
			})
		}
	}
}

func BenchmarkCutter(b *testing.B) {
	random := randomBytes(rand.New(rand.NewPCG(1, 1)), 16<<20)
	hasher := NewHasher([32]byte{1})
	for _, kind := range []SplitterKind{Rabin, Gear} {
		for _, hash := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s-64K/hash=%v", kind, hash), func(b *testing.B) {
				c, err := NewCutter(testParams(b, kind, DefaultAvg))
				if err != nil {
					b.Fatal(err)
				}
				src := bytes.NewReader(random)
				b.SetBytes(int64(len(random)))
				for b.Loop() {
					src.Reset(random)
					c.Reset(src)
					for {
						p, err := c.Next()
						if err != nil {
							break
						}
						if hash {
							hasher.Sum(p.Data)
						}
					}
				}
			})
		}
	}
	b.Run("zeros", func(b *testing.B) {
		c, err := NewCutter(testParams(b, Gear, DefaultAvg))
		if err != nil {
			b.Fatal(err)
		}
		zeros := make([]byte, 16<<20)
		b.SetBytes(int64(len(zeros)))
		for b.Loop() {
			c.Reset(bytes.NewReader(zeros))
			if _, err := c.Next(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkGuess(b *testing.B) {
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), 16<<20)
	hasher := NewHasher([32]byte{1})
	for _, kind := range []SplitterKind{Rabin, Gear} {
		b.Run(string(kind), func(b *testing.B) {
			p := testParams(b, kind, DefaultAvg)
			var lens []int64
			var ids []ID
			for _, piece := range cutAll(b, p, bytes.NewReader(data)) {
				lens, ids = append(lens, piece.Len), append(ids, hasher.Sum(piece.Data))
			}
			c, err := NewCutter(p)
			if err != nil {
				b.Fatal(err)
			}
			src := bytes.NewReader(data)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				src.Reset(data)
				c.Reset(src)
				for i := range lens[:len(lens)-1] {
					if _, hit, err := c.Guess(lens[i], func(p []byte) bool { return hasher.Sum(p) == ids[i] }); !hit || err != nil {
						b.Fatal(hit, err)
					}
				}
			}
		})
	}
}

func BenchmarkSum(b *testing.B) {
	hasher := NewHasher([32]byte{1})
	for _, n := range []int{1 << 10, 4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dK", n>>10), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				hasher.Sum(p)
			}
		})
	}
}

func BenchmarkNewSplitter(b *testing.B) {
	for _, kind := range []SplitterKind{Rabin, Gear} {
		p := testParams(b, kind, DefaultAvg)
		b.Run(string(kind), func(b *testing.B) {
			for b.Loop() {
				if _, err := NewSplitter(p); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(kind)+"/validate", func(b *testing.B) {
			for b.Loop() {
				if err := p.Validate(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
