package etcd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// A snapshot is a bbolt file. Its bucket "key" has all that keys ever were: the key there
// is a revision, 8 bytes, "_", and 8 bytes, with a "t" behind if it is a deletion; the
// value is a record in protobuf's encoding. The bucket is in the order of revisions, so
// that the last of a key's records is what it is.
const (
	boltMagic      = 0xED0CDAED
	boltBranch     = 0x01
	boltLeaf       = 0x02
	boltBucket     = 0x01 // flag of an element
	boltHead       = 16   // of a page, and of an element
	boltBucketHead = 16
	boltMeta       = 64
	boltDeep       = 64
	boltRun        = 128 << 20 // no run of pages is longer
	revisionLen    = 17
)

// place is where a record stands in the file.
type place struct {
	off int64
	len int
}

// bolt is a file that is walked.
type bolt struct {
	f     io.ReaderAt
	page  int64
	pages uint64
	seen  map[uint64]bool // none is reached twice
	leaf  func(flags uint32, key, value []byte, off int64) error
}

func bad(format string, a ...any) error {
	return fmt.Errorf("no whole database: %s: %w", fmt.Sprintf(format, a...), system.ErrIncomplete)
}

// findKeys returns where the newest record of each key is that begins with one of the
// prefixes, and is not deleted.
func findKeys(f io.ReaderAt, size int64, prefixes []string) (map[string]place, error) {
	b := &bolt{f: f, seen: map[uint64]bool{}}
	root, err := b.meta(size)
	if err != nil {
		return nil, err
	}
	// A bucket begins with the number of its page and its sequence; of a small one the
	// page itself stands behind these.
	var bucket []byte
	var at int64
	b.leaf = func(flags uint32, key, value []byte, off int64) error {
		if flags&boltBucket != 0 && string(key) == "key" {
			bucket, at = bytes.Clone(value), off
		}
		return nil
	}
	if err := b.walk(root, 0); err != nil {
		return nil, err
	}
	if len(bucket) < boltBucketHead {
		return nil, bad("it has no keys")
	}
	found := map[string]place{}
	b.leaf = func(_ uint32, key, value []byte, off int64) error {
		if len(key) != revisionLen && (len(key) != revisionLen+1 || key[revisionLen] != 't') {
			return bad("a revision of %d bytes", len(key))
		}
		r, err := parseRecord(value)
		if err != nil {
			return err
		}
		switch {
		case !begins(r.Key, prefixes):
		case len(key) > revisionLen:
			delete(found, string(r.Key))
		default:
			found[string(r.Key)] = place{off, len(value)}
		}
		return nil
	}
	if id := binary.LittleEndian.Uint64(bucket); id != 0 {
		return found, b.walk(id, 0)
	}
	return found, b.elements(bucket[boltBucketHead:], at+boltBucketHead, 0)
}

// meta reads the two meta pages, and returns the root of the newer one that is whole.
func (b *bolt) meta(size int64) (root uint64, err error) {
	var newest uint64
	for _, page := range []int64{4096, 8192, 16384, 32768, 65536} {
		for _, at := range []int64{0, page} {
			var p [boltHead + boltMeta]byte
			if _, err := b.f.ReadAt(p[:], at); err == io.EOF || err == io.ErrUnexpectedEOF {
				continue
			} else if err != nil {
				return 0, err
			}
			m := p[boltHead:]
			h := fnv.New64a()
			h.Write(m[:56])
			tx := binary.LittleEndian.Uint64(m[48:])
			if binary.LittleEndian.Uint32(m) == boltMagic && h.Sum64() == binary.LittleEndian.Uint64(m[56:]) &&
				int64(binary.LittleEndian.Uint32(m[8:])) == page && (b.page == 0 || tx > newest) {
				newest, b.page = tx, page
				root, b.pages = binary.LittleEndian.Uint64(m[16:]), binary.LittleEndian.Uint64(m[40:])
			}
		}
	}
	if b.page == 0 || b.pages > uint64(size/b.page) {
		return 0, bad("no meta page that fits %d bytes", size)
	}
	return root, nil
}

// walk calls leaf with all elements below a page, in their order.
func (b *bolt) walk(id uint64, deep int) error {
	if id < 2 || id >= b.pages || deep > boltDeep || b.seen[id] {
		return bad("page %d of %d", id, b.pages)
	}
	b.seen[id] = true
	var head [boltHead]byte
	if _, err := b.f.ReadAt(head[:], int64(id)*b.page); err != nil {
		return err
	}
	overflow := uint64(binary.LittleEndian.Uint32(head[12:]))
	if binary.LittleEndian.Uint64(head[:]) != id || overflow >= b.pages-id || (overflow+1)*uint64(b.page) > boltRun {
		return bad("page %d has the head of another", id)
	}
	p := make([]byte, (overflow+1)*uint64(b.page))
	if _, err := b.f.ReadAt(p, int64(id)*b.page); err != nil && err != io.EOF {
		return err
	}
	return b.elements(p, int64(id)*b.page, deep)
}

// elements walks what is on one page, which stands at an offset.
func (b *bolt) elements(p []byte, off int64, deep int) error {
	if len(p) < boltHead {
		return bad("a page of %d bytes", len(p))
	}
	flags, count := binary.LittleEndian.Uint16(p[8:]), int(binary.LittleEndian.Uint16(p[10:]))
	if boltHead+count*boltHead > len(p) {
		return bad("%d elements on %d bytes", count, len(p))
	}
	left := uint64(len(p)) // no byte is of two elements
	for i := range count {
		at := boltHead + i*boltHead
		e := p[at : at+boltHead]
		var err error
		switch {
		case flags&boltBranch != 0:
			err = b.walk(binary.LittleEndian.Uint64(e[8:]), deep+1)
		case flags&boltLeaf != 0:
			from := uint64(at) + uint64(binary.LittleEndian.Uint32(e[4:]))
			mid := from + uint64(binary.LittleEndian.Uint32(e[8:]))
			end := mid + uint64(binary.LittleEndian.Uint32(e[12:]))
			if end > uint64(len(p)) || end-from > left {
				return bad("an element that ends behind its page, or lies in another")
			}
			left -= end - from
			err = b.leaf(binary.LittleEndian.Uint32(e), p[from:mid], p[mid:end], off+int64(mid))
		default:
			err = bad("a page of flags %#x", flags)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parseRecord reads a record: mvccpb.KeyValue. What it has beside what is known is
// passed over.
func parseRecord(p []byte) (*record, error) {
	r := &record{}
	numbers := map[uint64]*int64{2: &r.Created, 3: &r.Changed, 4: &r.Version, 6: &r.Lease}
	for len(p) > 0 {
		tag, n := binary.Uvarint(p)
		if n <= 0 {
			return nil, bad("a record's field")
		}
		p = p[n:]
		v, n := binary.Uvarint(p) // the number, or the length
		if n <= 0 {
			return nil, bad("a record's number")
		}
		p = p[n:]
		switch tag & 7 {
		case 0:
			if at := numbers[tag>>3]; at != nil {
				*at = int64(v)
			}
		case 2:
			if v > uint64(len(p)) {
				return nil, bad("a field of %d bytes", v)
			}
			switch tag >> 3 {
			case 1:
				r.Key = p[:v]
			case 5:
				r.Value = p[:v]
			}
			p = p[v:]
		default:
			return nil, bad("a field of type %d", tag&7)
		}
	}
	return r, nil
}
