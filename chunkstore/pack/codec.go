package pack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

const (
	headerFixed = 50
	// TailFixed is the length of what follows the sealed trailer.
	TailFixed = 4 + 32
	// MaxSize bounds a pack file in bytes: offsets are 32 bits, and readers
	// take a whole pack into memory to verify it.
	MaxSize = 1 << 30
	// trailerVersion is the version byte that a plain trailer starts with.
	trailerVersion = 1
)

// AppendHeader appends the clear beginning of a pack file.
func AppendHeader(dst []byte, h *Header) []byte {
	dst = append(append(dst, seal.Magic...), byte(seal.KindPack))
	dst = binary.LittleEndian.AppendUint16(dst, seal.Version)
	dst = append(dst, byte(h.Kind), 0)
	dst = binary.LittleEndian.AppendUint32(dst, h.Epoch)
	dst = append(dst, h.Writer[:]...)
	dst = append(dst, h.Session[:]...)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(h.Wrapped)))
	return append(dst, h.Wrapped...)
}

// MaxHeader is the most bytes that a header takes.
const MaxHeader = headerFixed + math.MaxUint16

// ParseHeader reads the header that p starts with and returns its length.
// Wrapped points into p.
func ParseHeader(p []byte) (*Header, int, error) {
	if len(p) < headerFixed || string(p[:7]) != seal.Magic || p[7] != byte(seal.KindPack) {
		return nil, 0, fmt.Errorf("no pack header: %w", chunk.ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint16(p[8:]); v == 0 || v > seal.Version {
		return nil, 0, fmt.Errorf("pack of format version %d, this program reads up to %d: %w", v, seal.Version, seal.ErrVersion)
	}
	w := int(binary.LittleEndian.Uint16(p[48:]))
	if len(p) < headerFixed+w {
		return nil, 0, fmt.Errorf("pack header is cut short: %w", chunk.ErrCorrupt)
	}
	h := &Header{Kind: Kind(p[10]), Epoch: binary.LittleEndian.Uint32(p[12:]), Wrapped: p[headerFixed : headerFixed+w]}
	copy(h.Writer[:], p[16:])
	copy(h.Session[:], p[32:])
	if h.Kind != Data && h.Kind != Meta || p[11] != 0 {
		return nil, 0, fmt.Errorf("pack of kind %d: %w", p[10], seal.ErrVersion)
	}
	return h, headerFixed + w, nil
}

// AppendTrailer appends t's plain form.
func AppendTrailer(dst []byte, t *Trailer) []byte {
	return appendBytes(appendUnsigned(dst, t), signatureField, t.Signature)
}

func appendUnsigned(dst []byte, t *Trailer) []byte {
	dst = append(dst, trailerVersion)
	dst = appendBytes(dst, 1, t.Name[:])
	dst = appendVarint(dst, 2, uint64(t.Kind))
	dst = appendVarint(dst, 3, uint64(t.Epoch))
	dst = appendBytes(dst, 4, t.Writer[:])
	dst = appendBytes(dst, 5, t.Session[:])
	dst = appendBytes(dst, 6, t.Wrapped)
	dst = appendVarint(dst, 7, uint64(t.Size))
	var f, chunks []byte
	for i := range t.Frames {
		fr := &t.Frames[i]
		f = appendVarint(f[:0], 1, uint64(fr.Off))
		f = appendVarint(f, 2, uint64(fr.Stored))
		f = appendVarint(f, 3, uint64(fr.Plain))
		chunks = chunks[:0]
		for _, c := range fr.Chunks {
			chunks = binary.AppendUvarint(chunks, uint64(c.Len)<<3|uint64(c.Kind))
			chunks = append(chunks, c.ID[:]...)
			if c.Kind == Delta {
				chunks = append(chunks, c.Base[:]...)
			}
		}
		f = appendBytes(f, 4, chunks)
		f = append(f, fr.Extra...)
		dst = protowire.AppendTag(dst, 8, protowire.BytesType)
		dst = protowire.AppendBytes(dst, f)
	}
	return append(dst, t.Extra...)
}

func appendVarint(dst []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, n, protowire.VarintType), v)
}

func appendBytes(dst []byte, n protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, n, protowire.BytesType), v)
}

var errTrailer = fmt.Errorf("pack trailer: %w", chunk.ErrCorrupt)

// field is one field as it stands in p.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	v     uint64
	bytes []byte
	raw   []byte
}

func nextField(p []byte) (f field, rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(p)
	if n < 0 {
		return f, nil, errTrailer
	}
	f.num, f.typ = num, typ
	m := 0
	switch typ {
	case protowire.VarintType:
		f.v, m = protowire.ConsumeVarint(p[n:])
	case protowire.BytesType:
		f.bytes, m = protowire.ConsumeBytes(p[n:])
	default:
		m = protowire.ConsumeFieldValue(num, typ, p[n:])
	}
	if m < 0 {
		return f, nil, errTrailer
	}
	f.raw = p[:n+m]
	return f, p[n+m:], nil
}

// ParseTrailer reads a plain trailer. Wrapped and Extra point into p. It
// allocates a small multiple of len(p).
func ParseTrailer(p []byte) (*Trailer, error) {
	if len(p) == 0 {
		return nil, errTrailer
	}
	if p[0] != trailerVersion {
		return nil, fmt.Errorf("pack trailer of version %d: %w", p[0], seal.ErrVersion)
	}
	t := &Trailer{}
	for p = p[1:]; len(p) > 0; {
		f, rest, err := nextField(p)
		if err != nil {
			return nil, err
		}
		p = rest
		ok := true
		switch {
		case f.num == 1 && f.typ == protowire.BytesType:
			ok = copy16(t.Name[:], f.bytes)
		case f.num == 2 && f.typ == protowire.VarintType:
			t.Kind = Kind(f.v)
		case f.num == 3 && f.typ == protowire.VarintType:
			t.Epoch, ok = uint32(f.v), f.v <= math.MaxUint32
		case f.num == 4 && f.typ == protowire.BytesType:
			ok = copy16(t.Writer[:], f.bytes)
		case f.num == 5 && f.typ == protowire.BytesType:
			ok = copy16(t.Session[:], f.bytes)
		case f.num == 6 && f.typ == protowire.BytesType:
			t.Wrapped = f.bytes
		case f.num == 7 && f.typ == protowire.VarintType:
			t.Size, ok = int64(f.v), f.v <= MaxSize
		case f.num == 8 && f.typ == protowire.BytesType:
			fr, err := parseFrame(f.bytes)
			if err != nil {
				return nil, err
			}
			// No writer makes such, and a frame of two bytes would take 80 here.
			if ok = len(fr.Chunks) > 0; !ok {
				break
			}
			t.Frames = append(t.Frames, fr)
		case f.num == signatureField && f.typ == protowire.BytesType:
			t.Signature, ok = f.bytes, len(p) == 0
		default:
			t.Extra = append(t.Extra, f.raw...)
		}
		if !ok {
			return nil, errTrailer
		}
	}
	return t, t.check()
}

func copy16(dst, src []byte) bool { return copy(dst, src) == 16 && len(src) == 16 }

func parseFrame(p []byte) (Frame, error) {
	var fr Frame
	for len(p) > 0 {
		f, rest, err := nextField(p)
		if err != nil {
			return fr, err
		}
		p = rest
		if f.num <= 3 && f.v > math.MaxUint32 {
			return fr, errTrailer
		}
		switch {
		case f.num == 1 && f.typ == protowire.VarintType:
			fr.Off = uint32(f.v)
		case f.num == 2 && f.typ == protowire.VarintType:
			fr.Stored = uint32(f.v)
		case f.num == 3 && f.typ == protowire.VarintType:
			fr.Plain = uint32(f.v)
		case f.num == 4 && f.typ == protowire.BytesType:
			if fr.Chunks, err = parseChunks(fr.Chunks, f.bytes); err != nil {
				return fr, err
			}
		default:
			fr.Extra = append(fr.Extra, f.raw...)
		}
	}
	return fr, nil
}

func parseChunks(dst []Chunk, p []byte) ([]Chunk, error) {
	for len(p) > 0 {
		v, n := binary.Uvarint(p)
		if n <= 0 || v>>3 > math.MaxUint32 || len(p) < n+chunk.Size {
			return nil, errTrailer
		}
		c := Chunk{Len: uint32(v >> 3), Kind: ChunkKind(v & 7)}
		p = p[n:]
		p = p[copy(c.ID[:], p):]
		switch c.Kind {
		case Plain:
		case Delta:
			if len(p) < chunk.Size {
				return nil, errTrailer
			}
			p = p[copy(c.Base[:], p):]
		default:
			return nil, fmt.Errorf("chunk of kind %d: %w", c.Kind, seal.ErrVersion)
		}
		dst = append(dst, c)
	}
	return dst, nil
}

// check refuses what no writer writes and what readers would have to allocate
// without bound.
func (t *Trailer) check() error {
	for i := range t.Frames {
		f := &t.Frames[i]
		if f.Plain > seal.MaxFrame || f.Stored > seal.MaxFrame+seal.FrameOverhead ||
			t.Size > 0 && int64(f.Off)+int64(f.Stored) > t.Size {
			return fmt.Errorf("pack %s: frame %d has an impossible size or place: %w", t.Name, i, chunk.ErrCorrupt)
		}
		end := uint64(f.Start(0))
		for _, c := range f.Chunks {
			end += uint64(c.Len)
		}
		if end != uint64(f.Plain) {
			return fmt.Errorf("pack %s: the chunks of frame %d do not fill it: %w", t.Name, i, chunk.ErrCorrupt)
		}
	}
	return nil
}

// signatureField is the number of the trailer's last field.
const signatureField = 99

// signedMessage is what the writer signs: the pack's name and the hash of the
// plain trailer before the signature.
func signedMessage(name Name, plain []byte) []byte {
	d := chunk.Digest(plain)
	return bytes.Join([][]byte{[]byte("cutbank pack"), []byte(name.Object()), d[:]}, []byte{0})
}

// Sign makes these keys the trailer's writer and signs it.
func (t *Trailer) Sign(k *seal.Keys) error {
	t.Writer = k.Self()
	sig, err := k.Sign(signedMessage(t.Name, appendUnsigned(nil, t)))
	if err != nil {
		return fmt.Errorf("%s: %w", t.Name.Object(), err)
	}
	t.Signature = sig
	return nil
}

// Verify proves that the trailer was signed by its writer, and these keys know
// that writer: so a trailer proves itself wherever it stands.
func (t *Trailer) Verify(k *seal.Keys) error {
	plain := appendUnsigned(nil, t)
	if err := k.Verify(seal.WriterID(t.Writer), signedMessage(t.Name, plain), t.Signature); err != nil {
		return fmt.Errorf("pack %s: %w", t.Name, err)
	}
	return nil
}
