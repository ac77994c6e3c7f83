package etcd

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/bolt"
)

// A snapshot is a BoltDB file. Its bucket "key" has all that keys ever were: the key there
// is a revision, 8 bytes, "_", and 8 bytes, with a "t" behind if it is a deletion; the
// value is a record in protobuf's encoding. The bucket is in the order of revisions, so
// that the last of a key's records is what it is.
const revisionLen = 17

// place is where a record stands in the file.
type place struct {
	off int64
	len int
}

func bad(format string, a ...any) error {
	return fmt.Errorf("no whole database: %s: %w", fmt.Sprintf(format, a...), system.ErrIncomplete)
}

// findKeys returns where the newest record of each key is that begins with one of the
// prefixes, and is not deleted.
func findKeys(f io.ReaderAt, size int64, prefixes []string) (map[string]place, error) {
	b, err := bolt.Open(f, size)
	if err != nil {
		return nil, err
	}
	var found map[string]place
	err = b.Walk(func(e bolt.Element) error {
		if e.Bucket == nil || string(e.Key) != "key" {
			return nil
		}
		found = map[string]place{}
		return b.WalkBucket(e.Bucket, func(e bolt.Element) error { return find(found, e, prefixes) })
	})
	if err == nil && found == nil {
		err = bad("it has no keys")
	}
	return found, err
}

// find takes a revision into what was found in those before it.
func find(found map[string]place, e bolt.Element, prefixes []string) error {
	if e.Bucket != nil || len(e.Key) != revisionLen && (len(e.Key) != revisionLen+1 || e.Key[revisionLen] != 't') {
		return bad("a revision of %d bytes", len(e.Key))
	}
	r, err := parseRecord(e.Value)
	if err != nil {
		return err
	}
	switch {
	case !begins(r.Key, prefixes):
	case len(e.Key) > revisionLen:
		delete(found, string(r.Key))
	default:
		found[string(r.Key)] = place{e.Off, len(e.Value)}
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
