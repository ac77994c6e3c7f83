// Package bolt reads BoltDB files (go.etcd.io/bbolt) that come from others: snapshots
// of etcd, keys of FeatureBase. The library maps a file and believes what it says, so
// that a damaged one ends the process; here every number is checked, and memory is
// bounded.
//
// A file is pages of one size, a power of two. The first two are meta pages, each with
// a checksum; the newer whole one names the root. A page has a head: its number (8
// bytes), flags (2), how many elements there are (2), and how many pages it goes on
// for (4); all numbers are little-endian. An element of a branch page, 16 bytes, names
// a page below; one of a leaf page has flags, and where its key and its value are. A
// value that is a bucket begins with the number of its root and a sequence, 8 bytes
// each; if the number is 0, its only page stands behind them.
package bolt

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

const (
	magic       = 0xED0CDAED
	branchPage  = 0x01
	leafPage    = 0x02
	bucketFlag  = 0x01 // of an element
	headLen     = 16   // of a page
	elementLen  = 16
	bucketLen   = 16
	metaLen     = 64
	mostDeep    = 64        // no tree is deeper
	pageMin     = 1 << 10   // pages are those of the machine that wrote them
	pageMax     = 64 << 10  //
	mostInHand  = 256 << 20 // no more than this of a file is in memory at a time
	mostOfPages = 1 << 28   // 1 TiB as machines have them
)

// File is one that is read. It is for one goroutine at a time.
type File struct {
	f      io.ReaderAt
	page   int64
	pages  uint64 // that the newest meta page knows of
	root   uint64
	seen   []byte // one bit a page: none is reached twice
	inHand uint64 // bytes of pages that are in memory
}

// Element is a key with its value, or with its bucket. The bytes are its reader's
// until the visit ends.
type Element struct {
	Key    []byte
	Value  []byte  // nil if it is a bucket
	Off    int64   // of Value in the file
	Bucket *Bucket // nil if it is a value
}

// Bucket is a tree of its own.
type Bucket struct {
	Sequence uint64
	root     uint64
	inline   page // its only one, if root is 0
	deep     int
}

// page is one that is read.
type page struct {
	p      []byte
	off    int64 // in the file
	inline bool  // it stands in a value: there are no buckets and no branches in it
	deep   int
}

func bad(format string, a ...any) error {
	return fmt.Errorf("no whole BoltDB file: %s: %w", fmt.Sprintf(format, a...), system.ErrIncomplete)
}

// Open reads the meta pages of a file of that size. What is no whole BoltDB file is
// system.ErrIncomplete, one too large to be read system.ErrRefused; so it is with
// Walk.
func Open(f io.ReaderAt, size int64) (*File, error) {
	b := &File{f: f}
	if size < headLen+metaLen {
		return nil, bad("%d bytes", size)
	}
	var newest uint64
	// The second is at the size of a page, which the first says, if it is whole; if
	// not, a page of any size may be meant.
	for at := int64(0); at <= pageMax && at+headLen+metaLen <= size; {
		page, tx, root, pages, err := b.meta(at)
		if err != nil {
			return nil, err
		}
		if page > 0 && (b.page == 0 || tx > newest) {
			newest, b.page, b.root, b.pages = tx, page, root, pages
		}
		switch {
		case at == 0:
			at = max(b.page, pageMin)
		case at == b.page:
			at = pageMax + 1
		default:
			at *= 2
		}
	}
	switch {
	case b.page == 0:
		return nil, bad("no meta page")
	case b.pages > uint64(size/b.page):
		return nil, bad("%d pages of %d", size/b.page, b.pages)
	case b.pages > mostOfPages:
		return nil, fmt.Errorf("a BoltDB file of %d pages, and up to %d are taken: %w", b.pages, mostOfPages, system.ErrRefused)
	}
	return b, nil
}

// meta reads one meta page; page is 0 if it is none that is whole.
func (b *File) meta(at int64) (page int64, tx, root, pages uint64, err error) {
	var p [headLen + metaLen]byte
	if _, err := b.f.ReadAt(p[:], at); err != nil && err != io.EOF {
		return 0, 0, 0, 0, err
	}
	m := p[headLen:]
	h := fnv.New64a()
	h.Write(m[:56])
	page = int64(binary.LittleEndian.Uint32(m[8:]))
	if binary.LittleEndian.Uint32(m) != magic || h.Sum64() != binary.LittleEndian.Uint64(m[56:]) ||
		page < pageMin || page > pageMax || page&(page-1) != 0 || at != 0 && at != page {
		return 0, 0, 0, 0, nil
	}
	return page, binary.LittleEndian.Uint64(m[48:]), binary.LittleEndian.Uint64(m[16:]), binary.LittleEndian.Uint64(m[40:]), nil
}

// Walk visits all that is in the root, in the order of keys; what is in a bucket is
// visited by who calls WalkBucket from its visit.
func (b *File) Walk(visit func(Element) error) error {
	b.seen = make([]byte, (b.pages+7)/8)
	return b.walk(b.root, 0, visit)
}

// WalkBucket visits all that is in a bucket of an element that is being visited.
func (b *File) WalkBucket(k *Bucket, visit func(Element) error) error {
	if k.root != 0 {
		return b.walk(k.root, k.deep+1, visit)
	}
	if len(k.inline.p) < headLen {
		return bad("a bucket of %d bytes", bucketLen+len(k.inline.p))
	}
	return b.elements(k.inline, visit)
}

// walk visits what is below a page.
func (b *File) walk(id uint64, deep int, visit func(Element) error) error {
	if id < 2 || id >= b.pages || deep > mostDeep {
		return bad("page %d of %d", id, b.pages)
	}
	at := int64(id) * b.page
	var head [headLen]byte
	if _, err := b.f.ReadAt(head[:], at); err != nil {
		return err
	}
	overflow := uint64(binary.LittleEndian.Uint32(head[12:]))
	if binary.LittleEndian.Uint64(head[:]) != id || overflow >= b.pages-id {
		return bad("page %d has the head of another", id)
	}
	for n := id; n <= id+overflow; n++ {
		if b.seen[n/8]&(1<<(n%8)) != 0 {
			return bad("page %d is there twice", n)
		}
		b.seen[n/8] |= 1 << (n % 8)
	}
	n := (overflow + 1) * uint64(b.page)
	if b.inHand += n; b.inHand > mostInHand {
		return fmt.Errorf("a BoltDB file with pages of %d bytes above each other, and up to %d are taken: %w", b.inHand, mostInHand, system.ErrRefused)
	}
	defer func() { b.inHand -= n }()
	p := make([]byte, n)
	if _, err := b.f.ReadAt(p, at); err != nil && err != io.EOF {
		return err
	}
	return b.elements(page{p, at, false, deep}, visit)
}

// elements visits what is on a page. Its elements share its bytes, and do not lie
// upon each other.
func (b *File) elements(pg page, visit func(Element) error) error {
	flags, count := binary.LittleEndian.Uint16(pg.p[8:]), int(binary.LittleEndian.Uint16(pg.p[10:]))
	if headLen+count*elementLen > len(pg.p) || pg.deep > mostDeep {
		return bad("%d elements on %d bytes", count, len(pg.p))
	}
	left := uint64(len(pg.p))
	for i := range count {
		at := headLen + i*elementLen
		e := pg.p[at : at+elementLen]
		switch {
		case flags&branchPage != 0 && !pg.inline:
			if err := b.walk(binary.LittleEndian.Uint64(e[8:]), pg.deep+1, visit); err != nil {
				return err
			}
		case flags&leafPage != 0:
			from := uint64(at) + uint64(binary.LittleEndian.Uint32(e[4:]))
			mid := from + uint64(binary.LittleEndian.Uint32(e[8:]))
			end := mid + uint64(binary.LittleEndian.Uint32(e[12:]))
			if end > uint64(len(pg.p)) || end-from > left {
				return bad("an element that ends behind its page, or lies upon another")
			}
			left -= end - from
			el, err := pg.element(binary.LittleEndian.Uint32(e), from, mid, end)
			if err != nil {
				return err
			}
			if err := visit(el); err != nil {
				return err
			}
		default:
			return bad("a page of flags %#x", flags)
		}
	}
	return nil
}

// element is the one whose key begins at from, and its value at mid.
func (pg page) element(flags uint32, from, mid, end uint64) (Element, error) {
	key, value, off := pg.p[from:mid], pg.p[mid:end], pg.off+int64(mid)
	switch {
	case flags&bucketFlag == 0:
		return Element{Key: key, Value: value, Off: off}, nil
	case pg.inline:
		return Element{}, bad("a bucket in a value")
	case len(value) < bucketLen:
		return Element{}, bad("a bucket of %d bytes", len(value))
	}
	k := &Bucket{Sequence: binary.LittleEndian.Uint64(value[8:]), root: binary.LittleEndian.Uint64(value), deep: pg.deep}
	if k.root == 0 {
		k.inline = page{value[bucketLen:], off + bucketLen, true, pg.deep + 1}
	}
	return Element{Key: key, Bucket: k}, nil
}
