package index

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

const (
	segmentVersion = 1
	metaVersion    = 1
	// maxSegment bounds a segment's plain body in bytes, and so what reading
	// one can allocate.
	maxSegment = 64 << 20

	locationSize = 7 * 4
	recordFixed  = 45
	recordWriter = 5 // where the writer begins in a record
	// tailSize is how much of a table's end meta repeats: more than the
	// lengths and the checksum that badger trusts when it opens a table.
	tailSize = 32
)

// SegmentName names a segment: 16 random bytes, used once.
type SegmentName [16]byte

func (n SegmentName) String() string { return hex.EncodeToString(n[:]) }

const segmentPrefix = "index/"

// Object is the name of the segment's object in the repository.
func (n SegmentName) Object() string { return segmentPrefix + n.String() }

// ParseSegmentName is the reverse of Object. Names that are no segment's give
// false.
func ParseSegmentName(object string) (SegmentName, bool) {
	var n SegmentName
	if len(object) != len(segmentPrefix)+32 || object[:len(segmentPrefix)] != segmentPrefix {
		return n, false
	}
	b, err := hex.DecodeString(object[len(segmentPrefix):])
	if err != nil {
		return n, false
	}
	copy(n[:], b)
	return n, n.Object() == object
}

// Segment is the plain content of a segment.
type Segment struct {
	Replaced []SegmentName
	Dropped  []pack.Name
	Packs    []*pack.Trailer
	Extra    []byte // fields of newer versions, as they came

	owned    bool            // signed by the repository's owner
	unproven []*pack.Trailer // signed by writers whom these keys do not know
}

// AppendSegment appends s's plain form.
func AppendSegment(dst []byte, s *Segment) []byte {
	dst = append(dst, segmentVersion)
	for _, n := range s.Replaced {
		dst = appendBytes(dst, 1, n[:])
	}
	for _, n := range s.Dropped {
		dst = appendBytes(dst, 2, n[:])
	}
	var t []byte
	for _, packs := range [][]*pack.Trailer{s.Packs, s.unproven} {
		for _, p := range packs {
			t = pack.AppendTrailer(t[:0], p)
			dst = appendBytes(dst, 3, t)
		}
	}
	return append(dst, s.Extra...)
}

// ParseSegment reads a plain segment. The trailers point into p. Damage is
// chunk.ErrCorrupt, a newer version seal.ErrVersion.
func ParseSegment(p []byte) (*Segment, error) {
	if len(p) == 0 || len(p) > maxSegment {
		return nil, fmt.Errorf("segment of %d bytes: %w", len(p), chunk.ErrCorrupt)
	}
	if p[0] != segmentVersion {
		return nil, fmt.Errorf("segment of version %d: %w", p[0], seal.ErrVersion)
	}
	s := &Segment{}
	err := eachField(p[1:], func(f field) error {
		switch {
		case f.num == 1 && f.typ == protowire.BytesType && len(f.bytes) == 16:
			s.Replaced = append(s.Replaced, SegmentName(f.bytes))
		case f.num == 2 && f.typ == protowire.BytesType && len(f.bytes) == 16:
			s.Dropped = append(s.Dropped, pack.Name(f.bytes))
		case f.num == 3 && f.typ == protowire.BytesType:
			t, err := pack.ParseTrailer(f.bytes)
			if err != nil {
				return err
			}
			// Each trailer takes at least the bytes of its name, so that the
			// memory it costs is in proportion to p.
			if t.Name == (pack.Name{}) {
				return fmt.Errorf("a pack without a name: %w", chunk.ErrCorrupt)
			}
			s.Packs = append(s.Packs, t)
		case f.num <= 3:
			return errField
		default:
			s.Extra = append(s.Extra, f.raw...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("segment: %w", err)
	}
	return s, nil
}

var errField = fmt.Errorf("a field is malformed: %w", chunk.ErrCorrupt)

// field is one field as it stands in the bytes it was read from.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	v     uint64
	bytes []byte
	raw   []byte
}

// eachField calls f for every field of p.
func eachField(p []byte, f func(field) error) error {
	for len(p) > 0 {
		num, typ, n := protowire.ConsumeTag(p)
		if n < 0 {
			return errField
		}
		x := field{num: num, typ: typ}
		m := 0
		switch typ {
		case protowire.VarintType:
			x.v, m = protowire.ConsumeVarint(p[n:])
		case protowire.BytesType:
			x.bytes, m = protowire.ConsumeBytes(p[n:])
		default:
			m = protowire.ConsumeFieldValue(num, typ, p[n:])
		}
		if m < 0 {
			return errField
		}
		x.raw = p[:n+m]
		if err := f(x); err != nil {
			return err
		}
		p = p[n+m:]
	}
	return nil
}

func appendBytes(dst []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, n, protowire.BytesType), v)
}

func appendVarint(dst []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(dst, n, protowire.VarintType), v)
}

// place is a location whose pack is a number: of the generation's packs, or of
// the packs in memory.
type place struct {
	pack, frame, off, stored, plain, start, len uint32
}

func placeOf(number uint32, l *pack.Location) place {
	return place{number, l.Frame, l.Off, l.Stored, l.Plain, l.Start, l.Len}
}

func (p *place) location(name pack.Name) pack.Location {
	return pack.Location{Pack: name, Frame: p.frame, Off: p.off, Stored: p.stored, Plain: p.plain, Start: p.start, Len: p.len}
}

func appendPlace(dst []byte, p *place) []byte {
	for _, v := range [...]uint32{p.pack, p.frame, p.off, p.stored, p.plain, p.start, p.len} {
		dst = binary.LittleEndian.AppendUint32(dst, v)
	}
	return dst
}

// getPlace reads the place that b starts with, which has locationSize bytes.
func getPlace(b []byte) place {
	b = b[:locationSize]
	le := binary.LittleEndian
	return place{le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:])}
}

func appendRecord(dst []byte, p *chunkstore.PackInfo) []byte {
	dst = append(dst, byte(p.Kind))
	dst = binary.LittleEndian.AppendUint32(dst, p.Epoch)
	dst = append(append(dst, p.Writer[:]...), p.Session[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(p.Size))
	return append(dst, p.Wrapped...)
}

// parseRecord copies what it keeps of b.
func parseRecord(b []byte) (p chunkstore.PackInfo, ok bool) {
	if len(b) < recordFixed {
		return p, false
	}
	p.Kind, p.Epoch = pack.Kind(b[0]), binary.LittleEndian.Uint32(b[1:])
	copy(p.Writer[:], b[recordWriter:])
	copy(p.Session[:], b[21:])
	p.Size = int64(binary.LittleEndian.Uint64(b[37:]))
	p.Wrapped = bytes.Clone(b[recordFixed:])
	return p, true
}

// tableMeta is what meta says of one table.
type tableMeta struct {
	size int64
	tail []byte // its last tailSize bytes
}

// meta is what a generation says of itself.
type meta struct {
	repo    string
	lineage [16]byte
	covered []SegmentName
	dropped []pack.Name
	names   []pack.Name // sorted; the place is the number
	chunks  []tableMeta
	packs   []tableMeta
	keys    uint64
	// listings has PackInfo.Listing of each name; empty where an older program
	// wrote it.
	listings [][16]byte
}

func (m *meta) listing(number uint32) (l [16]byte) {
	if int64(number) < int64(len(m.listings)) {
		l = m.listings[number]
	}
	return l
}

func appendMeta(dst []byte, m *meta) []byte {
	start := len(dst)
	dst = append(dst, metaVersion)
	dst = appendBytes(dst, 1, []byte(m.repo))
	dst = appendBytes(dst, 2, m.lineage[:])
	dst = appendBytes(dst, 3, joinNames(m.covered))
	dst = appendBytes(dst, 4, joinNames(m.dropped))
	dst = appendBytes(dst, 5, joinNames(m.names))
	dst = appendTables(dst, 6, m.chunks)
	dst = appendTables(dst, 7, m.packs)
	dst = appendVarint(dst, 8, m.keys)
	if len(m.listings) > 0 {
		dst = appendBytes(dst, 9, joinNames(m.listings))
	}
	d := chunk.Digest(dst[start:])
	return append(dst, d[:]...)
}

func appendTables(dst []byte, num protowire.Number, tables []tableMeta) []byte {
	for _, t := range tables {
		b := appendVarint(nil, 1, uint64(t.size))
		dst = appendBytes(dst, num, appendBytes(b, 2, t.tail))
	}
	return dst
}

var errMeta = fmt.Errorf("meta: %w", chunk.ErrCorrupt)

func parseMeta(p []byte) (*meta, error) {
	if len(p) < 33 || p[0] != metaVersion {
		return nil, errMeta
	}
	all, sum := p[:len(p)-32], p[len(p)-32:]
	if d := chunk.Digest(all); !bytes.Equal(d[:], sum) {
		return nil, errMeta
	}
	m := &meta{}
	err := eachField(all[1:], func(f field) (err error) {
		switch f.num {
		case 1:
			m.repo = string(f.bytes)
		case 2:
			if len(f.bytes) != 16 {
				return errMeta
			}
			m.lineage = [16]byte(f.bytes)
		case 3:
			m.covered, err = splitNames[SegmentName](f.bytes)
		case 4:
			m.dropped, err = splitNames[pack.Name](f.bytes)
		case 5:
			m.names, err = splitNames[pack.Name](f.bytes)
		case 6:
			m.chunks, err = parseTable(m.chunks, f.bytes)
		case 7:
			m.packs, err = parseTable(m.packs, f.bytes)
		case 8:
			m.keys = f.v
		case 9:
			m.listings, err = splitNames[[16]byte](f.bytes)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !slices.IsSortedFunc(m.names, compareNames) || len(m.names) >= math.MaxUint32 || len(m.listings) > 0 && len(m.listings) != len(m.names) {
		return nil, errMeta
	}
	return m, nil
}

func parseTable(dst []tableMeta, p []byte) ([]tableMeta, error) {
	var t tableMeta
	err := eachField(p, func(f field) error {
		switch f.num {
		case 1:
			t.size = int64(f.v)
		case 2:
			t.tail = f.bytes
		}
		return nil
	})
	if err != nil || t.size < tailSize || len(t.tail) != tailSize {
		return nil, errMeta
	}
	return append(dst, t), nil
}

func joinNames[N ~[16]byte](names []N) []byte {
	b := make([]byte, 0, 16*len(names))
	for _, n := range names {
		b = append(b, n[:]...)
	}
	return b
}

func splitNames[N ~[16]byte](b []byte) ([]N, error) {
	if len(b)%16 != 0 {
		return nil, errMeta
	}
	names := make([]N, 0, len(b)/16)
	for ; len(b) > 0; b = b[16:] {
		names = append(names, N(b[:16]))
	}
	return names, nil
}

func compareNames(a, b pack.Name) int { return bytes.Compare(a[:], b[:]) }
