package parity

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/klauspost/reedsolomon"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// Object is the name of a pack's parity object in the repository.
func Object(name pack.Name) string { return "parity/" + name.String() }

// ParseObject is the reverse of Object. Names that are no parity object's give
// false.
func ParseObject(object string) (pack.Name, bool) {
	const prefix = "parity/"
	if len(object) != len(prefix)+32 || object[:len(prefix)] != prefix {
		return pack.Name{}, false
	}
	digits := object[len(prefix):]
	return pack.ParseObject("packs/" + digits[:2] + "/" + digits)
}

// Size returns how many bytes the parity object of a pack of size bytes has.
// percent is as for Compute.
func Size(size int64, percent float64) (int64, error) {
	l, err := newLayout(size, percent)
	if err != nil {
		return 0, err
	}
	return bodyAt + l.bodySize() + tailSize, nil
}

// Compute returns the body of the parity object of pack name, whose file is p:
// parity of at least percent of the pack, MinPercent to MaxPercent. That p
// proves itself is not checked again; it is neither changed nor kept.
func Compute(name pack.Name, p []byte, percent float64) ([]byte, error) {
	l, err := newLayout(int64(len(p)), percent)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Object(name), err)
	}
	l.name = name
	copy(l.digest[:], p[len(p)-len(l.digest):])
	coder, err := l.coder()
	if err != nil {
		return nil, err
	}
	body := make([]byte, l.bodySize())
	shards := make([][]byte, l.k+l.m)
	zeros, last := make([]byte, l.shard), make([]byte, l.shard)
	for s := range l.stripes() {
		for i := range l.k {
			j := s + i*l.stripes()
			if shards[i] = l.dataShard(p, j); shards[i] == nil {
				shards[i] = zeros
			} else if len(shards[i]) < l.shard {
				copy(last, shards[i])
				shards[i] = last
			}
		}
		for r := range l.m {
			shards[l.k+r] = l.parityShard(body, s+r*l.stripes())
		}
		if err := coder.Encode(shards); err != nil {
			return nil, fmt.Errorf("%s: %w", Object(name), err)
		}
	}
	l.describe(p, body)
	return body, nil
}

// describe writes all of a body but the parity shards: what is needed to use
// them, once in front and once behind.
func (l *layout) describe(p, body []byte) {
	head := l.appendHead(nil)
	table := body[headSize : headSize+l.tableSize()]
	for j := range l.data() {
		d := chunk.Digest(l.dataShard(p, j))
		copy(table[j*hashSize:], d[:hashSize])
	}
	for j := range l.parity() {
		d := chunk.Digest(l.parityShard(body, j))
		copy(table[(l.data()+j)*hashSize:], d[:hashSize])
	}
	copy(body, head)
	copy(body[l.secondTable():], table)
	copy(body[len(body)-headSize:], head)
}

// Parity is the parity of one pack, itself damaged or not. It is safe for
// concurrent use.
type Parity struct {
	layout
	body  []byte // as much of it as there is
	whole bool
}

// Open finds its way in p, the stored parity object of pack name, although
// bytes of it may be damaged or missing. It needs no key, and proves nothing
// but that p is of use: what Rebuild returns proves itself. The Parity refers
// to p. An object in which nothing is found is chunk.ErrCorrupt, one of a newer
// format seal.ErrVersion.
func Open(name pack.Name, p []byte) (*Parity, error) {
	o, err := seal.Parse(p)
	if errors.Is(err, seal.ErrVersion) {
		return nil, fmt.Errorf("%s: %w", Object(name), err)
	}
	if err == nil && o.Kind != seal.KindParity {
		return nil, fmt.Errorf("%s: is an object of kind %q: %w", Object(name), o.Kind, chunk.ErrCorrupt)
	}
	if err == nil && (o.Sealing != seal.Clear || o.Compressed) {
		return nil, fmt.Errorf("%s: parity that is sealed: %w", Object(name), seal.ErrVersion)
	}
	l, herr := parseHead(p, bodyAt)
	if herr != nil {
		var second *layout
		if second, herr = parseHead(p, len(p)-tailSize-headSize); herr == nil {
			l = second
		}
	}
	if herr != nil {
		return nil, fmt.Errorf("%s: neither its beginning nor its end can be read: %w", Object(name), herr)
	}
	if l.name != name {
		return nil, fmt.Errorf("%s: is the parity of pack %s: %w", Object(name), l.name, chunk.ErrCorrupt)
	}
	end := min(int64(len(p)), bodyAt+l.bodySize())
	if end < bodyAt+headSize+int64(l.tableSize()) {
		return nil, fmt.Errorf("%s: is cut short, to %d bytes: %w", Object(name), len(p), chunk.ErrCorrupt)
	}
	return &Parity{layout: *l, body: p[bodyAt:end], whole: err == nil && int64(len(p)) == bodyAt+l.bodySize()+tailSize}, nil
}

// Pack names the pack.
func (x *Parity) Pack() pack.Name { return x.name }

// Size is how many bytes the pack has.
func (x *Parity) Size() int64 { return x.size }

// Whole reports whether the object's own closing hash fits: no byte of it is
// damaged.
func (x *Parity) Whole() bool { return x.whole }

// Report tells what Rebuild found.
type Report struct {
	Shard         int // bytes of a shard; the pack's last may have fewer
	Data, Parity  int // shards of the pack, and of its parity
	DataDamaged   int // shards of the pack that are damaged, missing, or not known to be good
	ParityDamaged int // the same of the parity
	Lost          int // of the damaged data shards those that cannot be rebuilt
}

// Rebuild returns the pack whose file now holds p: damaged anywhere, cut short
// or grown. What it returns has the size and the closing hash of the pack, and
// is p itself if that is undamaged; p is not changed. Damage beyond what the
// parity covers is chunk.ErrCorrupt, and what is lost is in the Report.
func (x *Parity) Rebuild(p []byte) ([]byte, Report, error) {
	rep := Report{Shard: x.shard, Data: x.data(), Parity: x.parity()}
	if x.proves(p) {
		return p, rep, nil
	}
	good := x.survey(p, &rep)
	if lost, stripes := x.lost(good); lost > 0 {
		rep.Lost = lost
		return nil, rep, fmt.Errorf("pack %s: %d of %d shards of %d bytes are damaged, %d of them in %d stripes that have more damage than healthy parity: parity cannot rebuild it: %w",
			x.name, rep.DataDamaged, rep.Data, x.shard, lost, stripes, chunk.ErrCorrupt)
	}
	// What is missing here is no more than the healthy parity, which bounds
	// the allocation by the bytes that were read.
	out := make([]byte, x.data()*x.shard)
	copy(out[:x.size], p)
	if err := x.reconstruct(out, good); err != nil {
		return nil, rep, fmt.Errorf("pack %s: %w", x.name, err)
	}
	out = out[:x.size:x.size]
	if !x.proves(out) {
		return nil, rep, fmt.Errorf("pack %s: what was rebuilt is not what its closing hash says, so its parity is of other bytes: %w", x.name, chunk.ErrCorrupt)
	}
	return out, rep, nil
}

// proves reports whether p is the pack.
func (x *Parity) proves(p []byte) bool {
	return int64(len(p)) == x.size && bytes.Equal(p[len(p)-len(x.digest):], x.digest[:]) && pack.Check(p) == nil
}

// survey tells which shards are good: data shards, and behind them parity
// shards. Either copy of its hash is enough for a shard, so a damaged hash
// costs nothing, and two of them no more than the shard.
func (x *Parity) survey(p []byte, rep *Report) []bool {
	good := make([]bool, x.data()+x.parity())
	for j := range x.data() {
		if good[j] = x.known(j, x.dataShard(p, j)); !good[j] {
			rep.DataDamaged++
		}
	}
	for j := range x.parity() {
		i := x.data() + j
		if good[i] = x.known(i, x.parityShard(x.body, j)); !good[i] {
			rep.ParityDamaged++
		}
	}
	return good
}

func (x *Parity) known(i int, shard []byte) bool {
	if shard == nil {
		return false
	}
	d := chunk.Digest(shard)
	for _, table := range []int{headSize, x.secondTable()} {
		at := table + i*hashSize
		if at+hashSize <= len(x.body) && bytes.Equal(x.body[at:at+hashSize], d[:hashSize]) {
			return true
		}
	}
	return false
}

// lost counts the damaged data shards in stripes that have fewer good parity
// shards than that.
func (x *Parity) lost(good []bool) (shards, stripes int) {
	for s := range x.stripes() {
		bad, spare := 0, 0
		for j := s; j < x.data(); j += x.stripes() {
			if !good[j] {
				bad++
			}
		}
		for j := s; j < x.parity(); j += x.stripes() {
			if good[x.data()+j] {
				spare++
			}
		}
		if bad > spare {
			shards += bad
			stripes++
		}
	}
	return shards, stripes
}

// reconstruct replaces the bad data shards in out, which has room for whole
// shards and holds zeros behind the pack's end.
func (x *Parity) reconstruct(out []byte, good []bool) error {
	coder, err := x.coder()
	if err != nil {
		return err
	}
	zeros := make([]byte, x.shard)
	shards := make([][]byte, x.k+x.m)
	for s := range x.stripes() {
		for i := range x.k {
			j := s + i*x.stripes()
			switch at := j * x.shard; {
			case j >= x.data():
				shards[i] = zeros
			case good[j]:
				shards[i] = out[at : at+x.shard]
			default:
				shards[i] = out[at : at : at+x.shard] // room, but no bytes: to be rebuilt here
			}
		}
		for r := range x.m {
			j := s + r*x.stripes()
			if shards[x.k+r] = nil; good[x.data()+j] {
				shards[x.k+r] = x.parityShard(x.body, j)
			}
		}
		if err := coder.ReconstructData(shards); err != nil {
			return err
		}
	}
	return nil
}

// coder is the code of one stripe. Goroutines would cost more than they gain:
// a core codes faster than it hashes.
func (l *layout) coder() (reedsolomon.Encoder, error) {
	c, err := reedsolomon.New(l.k, l.m, reedsolomon.WithCauchyMatrix(), reedsolomon.WithInversionCache(false), reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("%d data and %d parity shards: %w", l.k, l.m, err)
	}
	return c, nil
}
