package gen

import "math/rand/v2"

// content is a way to fill a file.
type content int

const (
	text         content = iota // words, lines
	compressible                // records that differ in few bytes
	random                      // incompressible
	duplicate                   // what another file holds
	shifted                     // the same behind a few other bytes
	contents
)

func (c content) String() string {
	return [...]string{"txt", "rec", "bin", "dup", "shift"}[c]
}

var words = []string{
	"bank", "bend", "bluff", "cut", "current", "delta", "drift", "eddy", "flood", "ford", "gravel", "layer",
	"levee", "meander", "mud", "oxbow", "pebble", "pool", "rapid", "reach", "riffle", "river", "sand", "scour",
	"sediment", "shoal", "silt", "slope", "stone", "stream", "terrace", "valley",
}

// appendContent appends n bytes to p. The kinds that repeat others count as
// random here.
func appendContent(p []byte, rng *rand.Rand, n int, kind content) []byte {
	end := len(p) + n
	switch kind {
	case text:
		for len(p) < end {
			p = append(p, words[rng.IntN(len(words))]...)
			p = append(p, " \n"[min(rng.IntN(9)/8, 1)])
		}
	case compressible:
		record := make([]byte, 128)
		fillRandom(record[:64], rng) // the other half stays zero
		for len(p) < end {
			record[rng.IntN(len(record))] ^= byte(1 + rng.IntN(255))
			p = append(p, record...)
		}
	default:
		start := len(p)
		p = append(p, make([]byte, n)...)
		fillRandom(p[start:], rng)
	}
	return p[:end]
}

func fillRandom(p []byte, rng *rand.Rand) {
	for len(p) >= 8 {
		v := rng.Uint64()
		for i := range 8 {
			p[i] = byte(v >> (8 * i))
		}
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// repeat makes contents out of those of earlier files.
func (w *writer) repeat(kept [][]byte, size int, kind content) []byte {
	if len(kept) == 0 {
		return w.fill(size, random)
	}
	p := kept[w.rng.IntN(len(kept))]
	if kind == duplicate {
		return p
	}
	w.blob = appendContent(w.blob[:0], w.rng, 1+w.rng.IntN(200), random)
	w.blob = append(w.blob, p...)
	return w.blob
}
