package parity

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// How much parity may be asked for, in per cent of a pack. With less than
// MinPercent a stripe of the code has no room for two parity shards; more than
// MaxPercent is a second copy, and that is better kept elsewhere.
const (
	MinPercent = 1
	MaxPercent = 100
)

const (
	headSize = 96
	hashSize = 16
	maxCode  = 256 // shards of a stripe, in GF(2^8)
	minM     = 2   // so that damage across the border of two shards is covered

	minShard   = 512
	largeShard = 8 << 10 // what BLAKE3 hashes at once
	maxShard   = 1 << 20 // that a reader accepts

	// The envelope around the body of an object that is clear.
	bodyAt   = 38
	tailSize = 96
)

// layout is what a head says: where everything is.
type layout struct {
	k, m   int // data and parity shards of a stripe
	shard  int // bytes
	size   int64
	name   pack.Name
	digest [32]byte // the pack's closing hash
}

func newLayout(size int64, percent float64) (*layout, error) {
	if !(percent >= MinPercent && percent <= MaxPercent) {
		return nil, fmt.Errorf("parity of %g%%: want %d%% to %d%%", percent, MinPercent, MaxPercent)
	}
	if size < 32 || size > pack.MaxSize {
		return nil, fmt.Errorf("a pack of %d bytes: want 32 to %d", size, pack.MaxSize)
	}
	l := &layout{size: size, shard: minShard}
	// Small packs: two parity shards weigh as much as the hashes of all.
	for l.shard < largeShard && int64(l.shard)*int64(l.shard) < 2*hashSize*size/minM {
		l.shard *= 2
	}
	share := percent / 100
	most := max(minM, int(maxCode*share/(1+share)))
	long := min(maxCode-most, int(float64(most)/share))
	stripes := (l.data() + long - 1) / long
	l.k = (l.data() + stripes - 1) / stripes
	l.m = min(maxCode-l.k, max(minM, int(math.Ceil(share*float64(l.k)-1e-9))))
	return l, nil
}

// data is how many shards the pack has.
func (l *layout) data() int { return int((l.size + int64(l.shard) - 1) / int64(l.shard)) }

func (l *layout) stripes() int { return (l.data() + l.k - 1) / l.k }

// parity is how many parity shards there are.
func (l *layout) parity() int { return l.stripes() * l.m }

func (l *layout) tableSize() int { return (l.data() + l.parity()) * hashSize }

func (l *layout) secondTable() int { return headSize + l.tableSize() + l.parity()*l.shard }

func (l *layout) bodySize() int64 {
	return 2*headSize + 2*int64(l.tableSize()) + int64(l.parity())*int64(l.shard)
}

// dataShard returns shard j of a pack's file, nil if that is not all there. The
// last one may be short.
func (l *layout) dataShard(p []byte, j int) []byte {
	at := int64(j) * int64(l.shard)
	end := min(at+int64(l.shard), l.size)
	if at >= end || end > int64(len(p)) {
		return nil
	}
	return p[at:end:end]
}

// parityShard returns parity shard j of a body, nil if that is not all there.
func (l *layout) parityShard(body []byte, j int) []byte {
	at := headSize + l.tableSize() + j*l.shard
	end := at + l.shard
	if end > len(body) {
		return nil
	}
	return body[at:end:end]
}

func (l *layout) appendHead(p []byte) []byte {
	from := len(p)
	p = append(p, 1, byte(l.k), byte(l.m), 0)
	p = binary.LittleEndian.AppendUint32(p, uint32(l.shard))
	p = binary.LittleEndian.AppendUint64(p, uint64(l.size))
	p = append(p, l.name[:]...)
	p = append(p, l.digest[:]...)
	d := chunk.Digest(p[from:])
	return append(p, d[:]...)
}

// parseHead reads the head at that place of an object.
func parseHead(p []byte, at int) (*layout, error) {
	if at < 0 || at+headSize > len(p) {
		return nil, fmt.Errorf("%d bytes are too short: %w", len(p), chunk.ErrCorrupt)
	}
	p = p[at : at+headSize]
	if d := chunk.Digest(p[:64]); !bytes.Equal(d[:], p[64:]) {
		return nil, fmt.Errorf("its hash does not fit: %w", chunk.ErrCorrupt)
	}
	if p[0] != 1 {
		return nil, fmt.Errorf("parity of version %d, this program reads version 1: %w", p[0], seal.ErrVersion)
	}
	size, shard := binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint32(p[4:])
	l := &layout{k: int(p[1]), m: int(p[2]), shard: int(shard), size: int64(size), name: pack.Name(p[16:32]), digest: [32]byte(p[32:64])}
	if l.k == 0 || l.m == 0 || l.k+l.m > maxCode || shard < minShard || shard > maxShard || size < 32 || size > pack.MaxSize {
		return nil, fmt.Errorf("impossible: %d and %d shards of %d bytes for a pack of %d: %w", l.k, l.m, shard, size, chunk.ErrCorrupt)
	}
	return l, nil
}
