package chunk

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/restic/chunker"
)

// SplitterKind names a way to find cuts. The values are part of the stored
// format.
type SplitterKind string

const (
	Rabin SplitterKind = "rabin" // restic/chunker's fingerprint
	Gear  SplitterKind = "gear"  // a table-driven hash, several times faster
)

// Bounds of Params, in bytes.
const (
	MinAvg     = 1 << 10 // the smallest average
	DefaultAvg = 64 << 10
	MaxAvg     = 8 << 20 // the largest average
	MaxSize    = 4 * MaxAvg
)

// ZeroRun is from how many zero bytes on a run of them is no chunk. It is part
// of the stored format.
const ZeroRun = 4096

// Params say how streams are cut. They are chosen when a repository is made and
// never change: other parameters cut elsewhere. Secret keeps others from
// recognising data by the lengths of its chunks.
type Params struct {
	Kind   SplitterKind
	Min    int    // bytes; no cut before, but at zero runs and at the end
	Avg    int    // bytes, a power of two; mean length if Min is half of it
	Max    int    // bytes; a cut at the latest
	Secret uint64 // Rabin: the polynomial; Gear: the seed of its table
}

// DefaultParams returns NewParams(Rabin, DefaultAvg, rand).
func DefaultParams(rand io.Reader) (Params, error) { return NewParams(Rabin, DefaultAvg, rand) }

// NewParams makes Params with a new secret out of rand. The minimum is half of
// avg and the maximum four times avg; the mean of random data is avg.
func NewParams(kind SplitterKind, avg int, rand io.Reader) (Params, error) {
	p := Params{Kind: kind, Min: avg / 2, Avg: avg, Max: 4 * avg}
	switch kind {
	case Rabin:
		pol, err := chunker.DerivePolynomial(rand)
		if err != nil {
			return Params{}, fmt.Errorf("choosing a polynomial: %w", err)
		}
		p.Secret = uint64(pol)
	case Gear:
		var b [8]byte
		if _, err := io.ReadFull(rand, b[:]); err != nil {
			return Params{}, fmt.Errorf("choosing a splitter's secret: %w", err)
		}
		p.Secret = binary.LittleEndian.Uint64(b[:])
	}
	return p, p.Validate()
}

// Validate reports what is wrong with p, naming the field and its bounds. It
// allocates nothing that p decides.
func (p Params) Validate() error {
	switch {
	case p.Kind != Rabin && p.Kind != Gear:
		return fmt.Errorf("splitter %q is unknown: use %s or %s", p.Kind, Rabin, Gear)
	case p.Avg < MinAvg || p.Avg > MaxAvg || p.Avg&(p.Avg-1) != 0:
		return fmt.Errorf("average chunk size %d: want a power of two from %d to %d bytes", p.Avg, MinAvg, MaxAvg)
	case p.Min < MinAvg/2 || p.Min > p.Avg:
		return fmt.Errorf("minimum chunk size %d: want %d to %d bytes", p.Min, MinAvg/2, p.Avg)
	case p.Max < 2*p.Avg || p.Max > MaxSize:
		return fmt.Errorf("maximum chunk size %d: want %d to %d bytes", p.Max, 2*p.Avg, MaxSize)
	case p.Kind == Rabin && !irreducible(chunker.Pol(p.Secret)):
		return fmt.Errorf("the splitter's polynomial is not irreducible of degree %d", polDegree)
	}
	return nil
}

// polDegree is the only degree that chunker.DerivePolynomial makes; a larger
// one makes the library panic.
const polDegree = 53

func irreducible(p chunker.Pol) bool { return p.Deg() == polDegree && p.Irreducible() }

// cutBits is log2 of the mean distance from the minimum to the cut.
func (p Params) cutBits() int { return bits.Len(uint(p.Avg)) - 2 }
