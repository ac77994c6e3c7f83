package tree

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// PageKind is what a page lists. The values are part of the format.
type PageKind uint8

const (
	DirPage     PageKind = 1
	RecipePage  PageKind = 2
	WitnessPage PageKind = 3
	XattrPage   PageKind = 4
)

const (
	pageVersion = 1
	pageUnit    = 1 << 10 // least size of a page; on average it is four
	fineUnit    = 64      // where a source cuts at its records
	fineUpper   = 256     // and for the pages above those
	pageMax     = 16 << 10
	// maxPage bounds a page in bytes that is one long item, or lists extended
	// attributes.
	maxPage = 8 << 20
	// maxItems bounds all others, beyond what writers make: what a hostile page
	// can make a reader allocate.
	maxItems = 64 << 10
	maxLevel = 16
)

// RootName is the name of the only entry of a tree's, and the only item of a
// witness's, root page.
const RootName = "root"

// Put stores a page and returns its ID. It keeps no reference to p.
type Put func(p []byte) (chunk.ID, error)

// Ref refers to a page and sums up what is below it.
type Ref struct {
	ID    chunk.ID
	Last  string // name of the last item
	Items uint64
	Below Totals // Bytes alone for recipes
	Extra []byte
}

// Add adds u. The sum of the sizes stops at the largest that pages can say.
func (t *Totals) Add(u Totals) {
	t.Nodes += u.Nodes
	t.Files += u.Files
	t.Dirs += u.Dirs
	t.Bytes = min(t.Bytes+u.Bytes, maxCount) // sparse files can claim any size
}

// maxCount bounds counts and sizes in pages.
const maxCount = 1<<62 - 1

// listWriter cuts a list into pages, level upon level, as items come.
type listWriter struct {
	kind   PageKind
	put    Put
	levels []*level
	fine   bool // some items asked for pages of fineUnit
}

type level struct {
	items []byte
	count uint64
	sum   Ref
	cut   bool // the page ends here, should another item come
}

// add appends an item to level n. Pages end by its hash, with unit as their least
// size.
func (w *listWriter) add(n int, item []byte, hash uint64, sum Ref, unit uint64) error {
	w.fine = w.fine || unit == fineUnit
	if n == len(w.levels) {
		if n > maxLevel {
			return fmt.Errorf("a list of more than %d levels of pages", maxLevel)
		}
		w.levels = append(w.levels, &level{})
	}
	l := w.levels[n]
	if l.count > 0 && (l.cut || len(l.items)+len(item) > pageMax) {
		if err := w.flush(n); err != nil {
			return err
		}
	}
	l.items = binary.AppendUvarint(l.items, uint64(len(item)))
	l.items = append(l.items, item...)
	l.count++
	l.sum.Last = sum.Last
	l.sum.Items += sum.Items
	l.sum.Below.Add(sum.Below)
	share := ^uint64(0) / (3 * unit)
	hi, _ := bits.Mul64(share, uint64(len(item)))
	l.cut = uint64(len(l.items)) >= unit && (hi > 0 || hash < share*uint64(len(item)))
	return nil
}

func (w *listWriter) flush(n int) error {
	l := w.levels[n]
	page := append(make([]byte, 0, len(l.items)+16), pageVersion, byte(w.kind), byte(n))
	page = binary.AppendUvarint(page, l.count)
	page = append(page, l.items...)
	id, err := w.put(page)
	if err != nil {
		return err
	}
	ref := l.sum
	ref.ID = id
	*l = level{items: l.items[:0]}
	unit := uint64(pageUnit)
	if w.fine {
		unit = fineUpper
	}
	return w.add(n+1, appendRef(nil, &ref), binary.LittleEndian.Uint64(id[:]), ref, unit)
}

// finish closes the list; a list without items has a zero ID.
func (w *listWriter) finish() (Ref, error) {
	for n := 0; n < len(w.levels); n++ {
		l := w.levels[n]
		if n > 0 && n == len(w.levels)-1 && l.count == 1 {
			ref, err := firstRef(l.items)
			return ref, err
		}
		if l.count > 0 {
			if err := w.flush(n); err != nil {
				return Ref{}, err
			}
		}
	}
	return Ref{}, nil
}

func firstRef(items []byte) (Ref, error) {
	n, k := binary.Uvarint(items)
	return parseRef(items[k : k+int(n)])
}

func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func hashName(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return mix(h)
}

func appendRef(p []byte, r *Ref) []byte {
	p = appendBytes(p, 1, r.ID[:])
	p = appendString(p, 2, r.Last)
	p = appendVarint(p, 3, r.Items)
	p = appendVarint(p, 4, r.Below.Nodes)
	p = appendVarint(p, 5, r.Below.Files)
	p = appendVarint(p, 6, r.Below.Dirs)
	p = appendVarint(p, 7, r.Below.Bytes)
	return append(p, r.Extra...)
}

func parseRef(p []byte) (r Ref, err error) {
	err = fields(p, func(f *field) bool {
		switch f.num {
		case 1:
			return f.id(&r.ID)
		case 2:
			r.Last = string(f.bytes)
		case 3:
			r.Items = f.v
		case 4:
			r.Below.Nodes = f.v
		case 5:
			r.Below.Files = f.v
		case 6:
			r.Below.Dirs = f.v
		case 7:
			r.Below.Bytes = f.v
		default:
			r.Extra = append(r.Extra, f.raw...)
		}
		return true
	})
	if err == nil && (r.ID.IsZero() || r.Items == 0 || r.Items >= 1<<62 || r.Below.Nodes >= 1<<62 || r.Below.Bytes >= 1<<62) {
		err = errPage
	}
	return r, err
}

func appendVarint(p []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return p
	}
	return protowire.AppendVarint(protowire.AppendTag(p, n, protowire.VarintType), v)
}

func appendBytes(p []byte, n protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return p
	}
	return protowire.AppendBytes(protowire.AppendTag(p, n, protowire.BytesType), v)
}

func appendString(p []byte, n protowire.Number, v string) []byte {
	if v == "" {
		return p
	}
	return protowire.AppendString(protowire.AppendTag(p, n, protowire.BytesType), v)
}

func appendID(p []byte, n protowire.Number, id chunk.ID) []byte {
	if id.IsZero() {
		return p
	}
	return appendBytes(p, n, id[:])
}

var errPage = fmt.Errorf("page: %w", chunk.ErrCorrupt)

// field is one field as it stands in an item.
type field struct {
	num   protowire.Number
	v     uint64
	bytes []byte
	raw   []byte
}

func (f *field) id(id *chunk.ID) bool {
	return len(f.bytes) == copy(id[:], f.bytes) && len(f.bytes) == chunk.Size
}

// nextField reads the field that p begins with, and returns what follows it.
// Fields of a wire type that the format does not use come with number 0, to be
// kept.
func nextField(p []byte) (f field, rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(p)
	if n < 0 {
		return f, nil, errPage
	}
	f.num = num
	m := 0
	switch typ {
	case protowire.VarintType:
		f.v, m = protowire.ConsumeVarint(p[n:])
	case protowire.BytesType:
		f.bytes, m = protowire.ConsumeBytes(p[n:])
	default:
		f.num, m = 0, protowire.ConsumeFieldValue(num, typ, p[n:])
	}
	if m < 0 {
		return f, nil, errPage
	}
	f.raw = p[:n+m]
	return f, p[n+m:], nil
}

// fields calls do for each field of p; false is damage. The field is do's only
// while it runs.
func fields(p []byte, do func(*field) bool) error {
	var f field
	for len(p) > 0 {
		var err error
		if f, p, err = nextField(p); err != nil {
			return err
		}
		if !do(&f) {
			return errPage
		}
	}
	return nil
}

// A Page is a decoded page: leaves have one of the lists, inner pages Refs.
type Page struct {
	Kind    PageKind
	Level   int
	Refs    []Ref
	Entries []Entry
	Extents []Extent // Off counts from the page's beginning
	Witness []Witness
	Xattrs  []Xattr
}

// ParsePage decodes a page and checks that it is what a writer could have
// written: names in order, counts that fit. It keeps no reference to p and
// allocates at most 512 bytes for each byte of it; pages of several entries,
// extents or references have 64 KiB at most. Damage is chunk.ErrCorrupt, a kind
// or version of a newer program ErrVersion.
func ParsePage(p []byte) (*Page, error) {
	if len(p) < 4 || len(p) > maxPage {
		return nil, errPage
	}
	if p[0] != pageVersion {
		return nil, fmt.Errorf("page of version %d: %w", p[0], ErrVersion)
	}
	pg := &Page{Kind: PageKind(p[1]), Level: int(p[2])}
	if pg.Kind < DirPage || pg.Kind > XattrPage {
		return nil, fmt.Errorf("page of kind %d: %w", pg.Kind, ErrVersion)
	}
	count, n := binary.Uvarint(p[3:])
	if n <= 0 || pg.Level > maxLevel || count == 0 || count > uint64(len(p)) || count > 1 && len(p) > maxItems && pg.Kind != XattrPage {
		return nil, errPage
	}
	p = p[3+n:]
	pg.reserve(int(min(count, 128)))
	var off int64
	for range count {
		l, n := binary.Uvarint(p)
		if n <= 0 || l > uint64(len(p)-n) {
			return nil, errPage
		}
		if err := pg.item(p[n:n+int(l)], &off); err != nil {
			return nil, err
		}
		p = p[n+int(l):]
	}
	if len(p) != 0 {
		return nil, errPage
	}
	return pg, nil
}

// reserve makes room for n items.
func (pg *Page) reserve(n int) {
	switch {
	case pg.Level > 0:
		pg.Refs = make([]Ref, 0, n)
	case pg.Kind == DirPage:
		pg.Entries = make([]Entry, 0, n)
	case pg.Kind == RecipePage:
		pg.Extents = make([]Extent, 0, n)
	case pg.Kind == WitnessPage:
		pg.Witness = make([]Witness, 0, n)
	}
}

func (pg *Page) item(p []byte, off *int64) error {
	if pg.Level > 0 {
		r, err := parseRef(p)
		if err != nil {
			return err
		}
		if n := len(pg.Refs); n > 0 && pg.Kind != RecipePage && pg.Refs[n-1].Last >= r.Last {
			return errPage
		}
		pg.Refs = append(pg.Refs, r)
		return nil
	}
	switch pg.Kind {
	case DirPage:
		e, err := parseEntry(p)
		if err != nil {
			return err
		}
		if n := len(pg.Entries); n > 0 && pg.Entries[n-1].Name >= e.Name {
			return errPage
		}
		pg.Entries = append(pg.Entries, e)
	case RecipePage:
		x, rest, err := parseExtent(p)
		if err != nil {
			return err
		}
		if len(rest) > 0 {
			return errPage
		}
		x.Off = *off
		if *off += x.Len; *off >= 1<<62 {
			return errPage
		}
		pg.Extents = append(pg.Extents, x)
	case WitnessPage:
		w, err := parseWitness(p)
		if err != nil {
			return err
		}
		if n := len(pg.Witness); n > 0 && pg.Witness[n-1].Name >= w.Name {
			return errPage
		}
		pg.Witness = append(pg.Witness, w)
	case XattrPage:
		x, err := parseXattr(p)
		if err != nil {
			return err
		}
		pg.Xattrs = append(pg.Xattrs, x)
	}
	return nil
}
