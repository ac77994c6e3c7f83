package featurebase

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// A shard is an RBF database: pages of 8 KiB, the first of which begins with
// "\xffRBF" and has their number at 8, big-endian, and the page of root records at
// 20. Pages other than bitmaps begin with their number.
const (
	pageSize = 8 << 10
	rbfMagic = "\xffRBF"
	// emptyShard is the size of one that nothing was ever written to: meta page,
	// root records, free list. A node says that of shards that it does not own.
	emptyShard = 3 * pageSize
)

// rbfSize returns how long a shard's file must be, of its first bytes.
func rbfSize(head []byte) (int64, error) {
	if len(head) < 16 || string(head[:4]) != rbfMagic {
		return 0, fmt.Errorf("it does not begin as an RBF database: %w", system.ErrIncomplete)
	}
	n := int64(binary.BigEndian.Uint32(head[8:]))
	if n < 2 {
		return 0, fmt.Errorf("an RBF database of %d pages: %w", n, system.ErrIncomplete)
	}
	return n * pageSize, nil
}

// checkShard says whether a shard's file is whole.
func checkShard(f io.ReaderAt, size int64) error {
	var head [32]byte
	if size < pageSize {
		return fmt.Errorf("%d bytes are no RBF database: %w", size, system.ErrIncomplete)
	}
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return err
	}
	want, err := rbfSize(head[:])
	if err != nil {
		return err
	}
	if size != want {
		return fmt.Errorf("%d bytes of an RBF database of %d: %w", size, want, system.ErrIncomplete)
	}
	// The page of root records says that it is the page that the first one means.
	at := int64(binary.BigEndian.Uint32(head[20:]))
	if at == 0 {
		return nil
	}
	if at*pageSize >= size {
		return fmt.Errorf("root records at page %d of %d: %w", at, size/pageSize, system.ErrIncomplete)
	}
	var page [8]byte
	if _, err := f.ReadAt(page[:], at*pageSize); err != nil {
		return err
	}
	if no := binary.BigEndian.Uint32(page[:]); int64(no) != at {
		return fmt.Errorf("page %d says that it is page %d: %w", at, no, system.ErrIncomplete)
	}
	return nil
}
