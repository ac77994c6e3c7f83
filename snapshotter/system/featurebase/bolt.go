package featurebase

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"

	"github.com/cutbankfs/cutbank/snapshotter/system/bolt"
)

// Keys and the allocation of IDs are BoltDB files. A node sends one page by page, and
// ends the answer as if it were whole when it fails in between: only the file can say
// whether it is. And a node that takes one in opens it, which moves pages: two are
// the same if all their keys and values are.

// checkBolt walks a BoltDB file, and returns a digest of all keys and values in it and
// their number. Any file that is cut short, or that no database can be, is an error.
func checkBolt(f io.ReaderAt, size int64) (sum [sha256.Size]byte, items uint64, err error) {
	b, err := bolt.Open(f, size)
	if err != nil {
		return sum, 0, err
	}
	d := &boltDigest{f: b, sum: sha256.New()}
	if err := b.Walk(d.element); err != nil {
		return sum, 0, err
	}
	return [sha256.Size]byte(d.sum.Sum(nil)), d.items, nil
}

type boltDigest struct {
	f     *bolt.File
	sum   hash.Hash
	items uint64
}

// element takes one key into the digest, with its value or its bucket.
func (d *boltDigest) element(e bolt.Element) error {
	var head [9]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(e.Key)))
	if e.Bucket == nil {
		binary.LittleEndian.PutUint32(head[4:], uint32(len(e.Value)))
		d.sum.Write(head[:])
		d.sum.Write(e.Key)
		d.sum.Write(e.Value)
		d.items++
		return nil
	}
	head[8] = 1
	d.sum.Write(head[:])
	d.sum.Write(e.Key)
	d.sum.Write(binary.LittleEndian.AppendUint64(nil, e.Bucket.Sequence))
	err := d.f.WalkBucket(e.Bucket, d.element)
	d.sum.Write([]byte{'e', 'n', 'd', 0, 0, 0, 0, 0, 2})
	return err
}
