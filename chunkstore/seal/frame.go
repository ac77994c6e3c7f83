package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// Level is how hard frames are compressed.
type Level int

const (
	Fastest Level = iota // the default: first backups are bound by it
	Default
	Better
)

// FrameOverhead is how much longer a stored frame is than what it carries.
const FrameOverhead = 1 + 16

// MaxFrame bounds the plain size of a frame in bytes: what a reader may have
// to allocate for one.
const MaxFrame = 20 << 20

const (
	codecRaw  = 0
	codecZstd = 1
)

// windowSize is as large as any frame but those of giant chunks: more would
// only cost memory.
const windowSize = 512 << 10

var (
	encoders [3]*zstd.Encoder
	encOnce  [3]sync.Once
	decoder  = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxBody), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err) // only for options that exclude each other
		}
		return d
	})
)

func encoder(l Level) *zstd.Encoder {
	encOnce[l].Do(func() {
		level := [...]zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression}[l]
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)),
			zstd.WithEncoderCRC(false), zstd.WithWindowSize(windowSize), zstd.WithSingleSegment(true))
		if err != nil {
			panic(err)
		}
		encoders[l] = e
	})
	return encoders[l]
}

func compress(dst, src []byte) []byte { return encoder(Fastest).EncodeAll(src, dst) }

// Compress appends src's compressed form to dst, for measurements of what
// storing would cost.
func Compress(dst, src []byte) []byte { return compress(dst, src) }

// Decompress appends to dst what one zstd frame holds, limit bytes at most.
// Anything wrong with it is chunk.ErrCorrupt.
func Decompress(dst, src []byte, limit int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil || !h.HasFCS {
		return dst, fmt.Errorf("compressed data without a size: %w", chunk.ErrCorrupt)
	}
	if h.FrameContentSize > uint64(limit) {
		return dst, fmt.Errorf("compressed data claims %d bytes, more than %d: %w", h.FrameContentSize, limit, chunk.ErrCorrupt)
	}
	n := len(dst)
	if want := n + int(h.FrameContentSize); cap(dst) < want {
		dst = append(make([]byte, 0, want), dst...)
	}
	out, err := decoder().DecodeAll(src, dst[:n:n+int(h.FrameContentSize)])
	if err != nil || len(out) != n+int(h.FrameContentSize) {
		return dst[:n], fmt.Errorf("compressed data does not decode: %w", chunk.ErrCorrupt)
	}
	return out, nil
}

// AppendFrame appends the plain form of a frame to dst.
func AppendFrame(dst []byte, chunks [][]byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(chunks)))
	for _, c := range chunks {
		dst = binary.AppendUvarint(dst, uint64(len(c)))
	}
	for _, c := range chunks {
		dst = append(dst, c...)
	}
	return dst
}

// ParseFrame splits a plain frame into its chunks, which point into p. It
// allocates at most 32 bytes for each byte of p, as each chunk takes one for its
// length.
func ParseFrame(p []byte) ([][]byte, error) {
	bad := fmt.Errorf("frame: %w", chunk.ErrCorrupt)
	n, k := binary.Uvarint(p)
	if k <= 0 || n > uint64(len(p)-k) {
		return nil, bad
	}
	rest := p[k:]
	lens := make([]int, n)
	total := 0
	for i := range lens {
		l, k := binary.Uvarint(rest)
		if k <= 0 || l > uint64(len(p)) {
			return nil, bad
		}
		rest = rest[k:]
		lens[i] = int(l)
		total += int(l)
		if total > len(p) {
			return nil, bad
		}
	}
	if total != len(rest) {
		return nil, bad
	}
	chunks := make([][]byte, n)
	for i, l := range lens {
		chunks[i], rest = rest[:l:l], rest[l:]
	}
	return chunks, nil
}

// Pack returns what to seal for a plain frame: compressed where that gains at
// least four per cent. dst is scratch that the result may reuse.
func Pack(dst, plain []byte, l Level) []byte {
	dst = append(dst[:0], codecZstd)
	dst = encoder(l).EncodeAll(plain, dst)
	if len(dst)-1 > len(plain)-len(plain)/25 {
		dst = append(append(dst[:0], codecRaw), plain...)
	}
	return dst
}

// FrameKey seals and opens the frames of one pack. It is safe for concurrent
// use.
type FrameKey struct {
	aead cipher.AEAD
	pack []byte
}

// NewFrameKey returns the FrameKey of a pack's 32-byte key and name.
func NewFrameKey(key []byte, pack []byte) *FrameKey {
	return &FrameKey{newGCM(key), append([]byte(nil), pack...)}
}

func frameNonce(n uint32) []byte {
	var nonce [nonceSize]byte
	binary.BigEndian.PutUint32(nonce[8:], n)
	return nonce[:]
}

// Seal appends the stored form of frame number n to dst; packed is what Pack
// returned. No number may be used twice.
func (f *FrameKey) Seal(dst []byte, n uint32, packed []byte) []byte {
	return f.aead.Seal(dst, frameNonce(n), packed, f.pack)
}

// Open returns the plain form of frame number n, in dst's room if it fits.
// stored is overwritten. Anything that does not fit is chunk.ErrCorrupt.
func (f *FrameKey) Open(dst []byte, n uint32, stored []byte) ([]byte, error) {
	packed, err := f.OpenPacked(n, stored)
	if err != nil {
		return nil, err
	}
	p, err := Unpack(dst, packed)
	if err != nil {
		return nil, fmt.Errorf("frame %d: %w", n, err)
	}
	return p, nil
}

// Unpack is the reverse of Pack: it returns the plain form of a frame, in dst's
// room if it fits. packed is what OpenPacked returned, and not empty. Damage is
// chunk.ErrCorrupt.
func Unpack(dst, packed []byte) ([]byte, error) {
	switch packed[0] {
	case codecRaw:
		return append(dst[:0], packed[1:]...), nil
	case codecZstd:
		return Decompress(dst[:0], packed[1:], MaxFrame)
	}
	return nil, fmt.Errorf("compression %d: %w", packed[0], ErrVersion)
}

// OpenPacked returns what was sealed as frame number n, as Pack made it: proven
// to be what the pack's writer stored, but not what it decompresses to. It lies
// in stored, which is overwritten. What does not open is chunk.ErrCorrupt.
func (f *FrameKey) OpenPacked(n uint32, stored []byte) ([]byte, error) {
	packed, err := f.aead.Open(stored[:0], frameNonce(n), stored, f.pack)
	if err != nil || len(packed) == 0 {
		return nil, fmt.Errorf("frame %d does not open: %w", n, chunk.ErrCorrupt)
	}
	return packed, nil
}

// newGCM returns AES-256-GCM under a 32-byte key.
func newGCM(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for a key of another length
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	return g
}

// ListOverhead is how much longer SealList makes what it seals.
const ListOverhead = nonceSize + 16

// SealList seals plain under the list key derived for name: a 12-byte nonce and
// AES-256-GCM with name as additional data.
func (k *Keys) SealList(name string, plain []byte, random io.Reader) ([]byte, error) {
	nonce := make([]byte, nonceSize, nonceSize+len(plain)+16)
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("%s: random nonce: %w", name, err)
	}
	return newGCM(k.ListKey(name)).Seal(nonce, nonce, plain, []byte(name)), nil
}

// OpenList opens what SealList sealed.
func (k *Keys) OpenList(name string, sealed []byte) ([]byte, error) {
	if len(sealed) < ListOverhead {
		return nil, fmt.Errorf("%s: too short: %w", name, chunk.ErrCorrupt)
	}
	plain, err := newGCM(k.ListKey(name)).Open(nil, sealed[:nonceSize], sealed[nonceSize:], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("%s: does not open: %w", name, chunk.ErrCorrupt)
	}
	return plain, nil
}
