package featurebase

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"io"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// Keys and the allocation of IDs are BoltDB files. A node sends one page by page, and
// ends the answer as if it were whole when it fails in between: only the file can say
// whether it is. And a node that takes one in opens it, which moves pages: two are
// the same if all their keys and values are.
const (
	boltMagic   = 0xED0CDAED
	boltBranch  = 0x01
	boltLeaf    = 0x02
	boltBucket  = 0x01 // flag of an element
	boltHeader  = 16
	boltElement = 16
	boltMetaLen = 64
	boltDeep    = 64      // no tree is deeper
	boltPageMin = 1 << 10 // BoltDB's pages are those of the machine
	boltPageMax = 64 << 10
	boltHeld    = 256 << 20 // no more than this of a file is in memory at a time
	boltPages   = 1 << 28   // no more pages than this: 1 TiB as machines have them
)

// boltFile is one that is being walked.
type boltFile struct {
	f     io.ReaderAt
	size  int64
	page  int64
	pages uint64 // that the newest meta page knows of
	seen  []byte // one bit a page: none is reached twice
	held  uint64 // bytes of pages that are in memory
	sum   hash.Hash
	items uint64
}

// checkBolt walks a BoltDB file, and returns a digest of all keys and values in it and
// their number. Any file that is cut short, or that no database can be, is an error.
func checkBolt(f io.ReaderAt, size int64) (sum [sha256.Size]byte, items uint64, err error) {
	b := &boltFile{f: f, size: size, sum: sha256.New()}
	root, err := b.meta()
	if err != nil {
		return sum, 0, err
	}
	b.seen = make([]byte, (b.pages+7)/8)
	if err := b.walk(root, 0); err != nil {
		return sum, 0, err
	}
	return [sha256.Size]byte(b.sum.Sum(nil)), b.items, nil
}

func (b *boltFile) bad(format string, a ...any) error {
	return fmt.Errorf("no whole BoltDB file: %s: %w", fmt.Sprintf(format, a...), system.ErrIncomplete)
}

// meta reads the two meta pages, and returns the root of the newer one that is whole.
func (b *boltFile) meta() (root uint64, err error) {
	var newest uint64
	var first [boltHeader + boltMetaLen]byte
	if b.size < int64(len(first)) {
		return 0, b.bad("%d bytes", b.size)
	}
	// The second is at the size of a page, which the first says, if it is whole; if
	// not, a page of any size may be meant.
	for at := int64(0); at <= boltPageMax && at+int64(len(first)) <= b.size; {
		if _, err := b.f.ReadAt(first[:], at); err != nil && err != io.EOF {
			return 0, err
		}
		m := first[boltHeader:]
		h := fnv.New64a()
		h.Write(m[:56])
		page, tx := int64(binary.LittleEndian.Uint32(m[8:])), binary.LittleEndian.Uint64(m[48:])
		whole := binary.LittleEndian.Uint32(m) == boltMagic && h.Sum64() == binary.LittleEndian.Uint64(m[56:]) &&
			page >= boltPageMin && page <= boltPageMax && page&(page-1) == 0 && (at == 0 || at == page)
		if whole && (b.page == 0 || tx > newest) {
			newest, b.page = tx, page
			root, b.pages = binary.LittleEndian.Uint64(m[16:]), binary.LittleEndian.Uint64(m[40:])
		}
		switch {
		case at == 0 && b.page > 0:
			at = b.page
		case at == 0:
			at = boltPageMin
		case at == b.page:
			at = boltPageMax + 1
		default:
			at *= 2
		}
	}
	if b.page == 0 {
		return 0, b.bad("no meta page")
	}
	if b.pages > uint64(b.size/b.page) {
		return 0, b.bad("%d pages of %d", b.size/b.page, b.pages)
	}
	if b.pages > boltPages {
		return 0, fmt.Errorf("a BoltDB file of %d pages, and up to %d are taken: %w", b.pages, boltPages, system.ErrRefused)
	}
	return root, nil
}

// walk walks what is below a page.
func (b *boltFile) walk(id uint64, deep int) error {
	if id < 2 || id >= b.pages || deep > boltDeep {
		return b.bad("page %d of %d", id, b.pages)
	}
	var head [boltHeader]byte
	if _, err := b.f.ReadAt(head[:], int64(id)*b.page); err != nil {
		return err
	}
	overflow := uint64(binary.LittleEndian.Uint32(head[12:]))
	if binary.LittleEndian.Uint64(head[:]) != id || overflow >= b.pages-id {
		return b.bad("page %d has the head of another", id)
	}
	for at := id; at <= id+overflow; at++ {
		if b.seen[at/8]&(1<<(at%8)) != 0 {
			return b.bad("page %d is there twice", at)
		}
		b.seen[at/8] |= 1 << (at % 8)
	}
	n := (overflow + 1) * uint64(b.page)
	if b.held += n; b.held > boltHeld {
		return fmt.Errorf("a BoltDB file with pages of %d bytes above each other, and up to %d are taken: %w", b.held, boltHeld, system.ErrRefused)
	}
	defer func() { b.held -= n }()
	p := make([]byte, n)
	if _, err := b.f.ReadAt(p, int64(id)*b.page); err != nil && err != io.EOF {
		return err
	}
	return b.elements(p, deep, false)
}

// elements walks what is on one page, or in one that stands in a value: in that there
// are no buckets. The elements of a page share its bytes, and do not lie upon each other.
func (b *boltFile) elements(p []byte, deep int, inline bool) error {
	flags, count := binary.LittleEndian.Uint16(p[8:]), int(binary.LittleEndian.Uint16(p[10:]))
	sum := uint64(0)
	if boltHeader+count*boltElement > len(p) || deep > boltDeep {
		return b.bad("%d elements on %d bytes", count, len(p))
	}
	for i := range count {
		at := boltHeader + i*boltElement
		e := p[at : at+boltElement]
		switch {
		case flags&boltBranch != 0 && !inline:
			if err := b.walk(binary.LittleEndian.Uint64(e[8:]), deep+1); err != nil {
				return err
			}
		case flags&boltLeaf != 0:
			pos, klen, vlen := uint64(binary.LittleEndian.Uint32(e[4:])), uint64(binary.LittleEndian.Uint32(e[8:])), uint64(binary.LittleEndian.Uint32(e[12:]))
			from := uint64(at) + pos
			if sum += klen + vlen; from+klen+vlen > uint64(len(p)) || sum > uint64(len(p)) {
				return b.bad("an element that ends behind its page")
			}
			if inline && binary.LittleEndian.Uint32(e)&boltBucket != 0 {
				return b.bad("a bucket in a value")
			}
			if err := b.element(binary.LittleEndian.Uint32(e), p[from:from+klen], p[from+klen:from+klen+vlen], deep); err != nil {
				return err
			}
		default:
			return b.bad("a page of flags %#x", flags)
		}
	}
	return nil
}

// element takes one key into the digest, with its value or its bucket.
func (b *boltFile) element(flags uint32, key, value []byte, deep int) error {
	var head [9]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(key)))
	if flags&boltBucket == 0 {
		binary.LittleEndian.PutUint32(head[4:], uint32(len(value)))
		b.sum.Write(head[:])
		b.sum.Write(key)
		b.sum.Write(value)
		b.items++
		return nil
	}
	if len(value) < boltHeader {
		return b.bad("a bucket of %d bytes", len(value))
	}
	// A bucket begins with the number of its page, and its sequence.
	head[8] = 1
	b.sum.Write(head[:])
	b.sum.Write(key)
	b.sum.Write(value[8:16])
	root, err := binary.LittleEndian.Uint64(value), error(nil)
	if root != 0 {
		err = b.walk(root, deep+1)
	} else if inline := bytes.Clone(value[boltHeader:]); len(inline) < boltHeader {
		err = b.bad("a bucket of %d bytes", len(value))
	} else {
		err = b.elements(inline, deep+1, true)
	}
	b.sum.Write([]byte{'e', 'n', 'd', 0, 0, 0, 0, 0, 2})
	return err
}
