package pack

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// Builder assembles one pack in memory. It is for one goroutine at a time.
type Builder struct {
	t      Trailer
	key    *seal.FrameKey
	chunks int
	buf    []byte
}

// NewBuilder begins a pack: a random name, a random key, wrapped. buf is
// room that the pack is built in.
func NewBuilder(k *seal.Keys, kind Kind, session [16]byte, random io.Reader, buf []byte) (*Builder, error) {
	b := &Builder{buf: buf[:0]}
	key := make([]byte, 32)
	if _, err := io.ReadFull(random, b.t.Name[:]); err != nil {
		return nil, fmt.Errorf("random name of a pack: %w", err)
	}
	if _, err := io.ReadFull(random, key); err != nil {
		return nil, fmt.Errorf("random key of a pack: %w", err)
	}
	var err error
	b.t.Header = Header{Kind: kind, Writer: k.Self(), Session: session}
	if b.t.Epoch, b.t.Wrapped, err = k.Wrap(b.t.Name.Object(), key); err != nil {
		return nil, err
	}
	b.key = seal.NewFrameKey(key, b.t.Name[:])
	b.buf = AppendHeader(b.buf, &b.t.Header)
	return b, nil
}

// Name returns the pack's name.
func (b *Builder) Name() Name { return b.t.Name }

// Size returns how many bytes the pack has so far.
func (b *Builder) Size() int { return len(b.buf) }

// Chunks returns how many chunks the pack has so far.
func (b *Builder) Chunks() int { return b.chunks }

// Frames returns how many frames the pack has so far.
func (b *Builder) Frames() int { return len(b.t.Frames) }

// Add seals a frame into the pack. packed is what seal.Pack returned for the
// plain frame of that many bytes, which holds the chunks.
func (b *Builder) Add(packed []byte, plain int, chunks []Chunk) {
	n := len(packed) + seal.FrameOverhead - 1
	b.buf = binary.LittleEndian.AppendUint32(b.buf, uint32(n))
	off := len(b.buf)
	b.chunks += len(chunks)
	b.buf = b.key.Seal(b.buf, uint32(len(b.t.Frames)), packed)
	b.t.Frames = append(b.t.Frames, Frame{Off: uint32(off), Stored: uint32(n), Plain: uint32(plain), Chunks: chunks})
}

// Finish closes the pack and returns its bytes, which are in the room given to
// NewBuilder if it was large enough, and its trailer, which does not keep them
// alive. The Builder is not to be used any more.
func (b *Builder) Finish(k *seal.Keys, random io.Reader) ([]byte, *Trailer, error) {
	name := b.t.Name.Object()
	// The size is part of what it is the size of: the trailer's length does
	// not depend on the value as long as its varint has the same length, so
	// try until it stands.
	b.t.Signature = make([]byte, ed25519.SignatureSize)
	plain, size := []byte(nil), int64(0)
	for range 4 {
		b.t.Size = size
		plain = AppendTrailer(plain[:0], &b.t)
		want := int64(len(b.buf) + seal.ListOverhead + len(plain) + TailFixed)
		if want == size {
			break
		}
		size = want
	}
	if b.t.Size != size {
		return nil, nil, fmt.Errorf("pack %s: its size does not settle at %d bytes", b.t.Name, size)
	}
	if err := b.t.Sign(k); err != nil {
		return nil, nil, err
	}
	sealed, err := k.SealList(name, AppendTrailer(plain[:0], &b.t), random)
	if err != nil {
		return nil, nil, err
	}
	b.buf = append(b.buf, sealed...)
	b.buf = binary.LittleEndian.AppendUint32(b.buf, uint32(len(sealed)))
	d := chunk.Digest(b.buf)
	p, t := append(b.buf, d[:]...), b.t
	return p, &t, nil
}

// Renew returns a Builder with the frames of this one, which is finished, under
// another name and key. It is for a pack of which nobody knows whether it was
// stored: its name may not be put again. buf is room as for NewBuilder, and none
// of this one's: what it was finished to stays as it is.
func (b *Builder) Renew(k *seal.Keys, random io.Reader, buf []byte) (*Builder, error) {
	n, err := NewBuilder(k, b.t.Kind, b.t.Session, random, buf)
	if err != nil {
		return nil, err
	}
	var stored []byte
	for i := range b.t.Frames {
		f := &b.t.Frames[i]
		stored = append(stored[:0], b.buf[f.Off:f.Off+f.Stored]...)
		packed, err := b.key.OpenPacked(uint32(i), stored)
		if err != nil {
			return nil, fmt.Errorf("pack %s: %w", b.t.Name, err)
		}
		n.Add(packed, int(f.Plain), f.Chunks)
	}
	return n, nil
}
