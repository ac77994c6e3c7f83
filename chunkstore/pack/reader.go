package pack

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// ReadAt reads n bytes at off of a pack file; fewer are an error.
type ReadAt func(off, n int64) ([]byte, error)

// ReadTrailer reads and proves what a pack of that name and size lists: header,
// trailer and signature, but no frame.
func ReadTrailer(k *seal.Keys, name Name, size int64, read ReadAt) (*Trailer, error) {
	if size > MaxSize || size < headerFixed+TailFixed {
		return nil, fmt.Errorf("pack %s: %d bytes are no pack: %w", name, size, chunk.ErrCorrupt)
	}
	// One read fetches the tail of a usual pack, one more the header.
	tail, err := read(max(0, size-64<<10), min(size, 64<<10))
	if err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(tail[len(tail)-36:]))
	if n > size-headerFixed-TailFixed {
		return nil, fmt.Errorf("pack %s: trailer of %d bytes does not fit: %w", name, n, chunk.ErrCorrupt)
	}
	if n+TailFixed > int64(len(tail)) {
		if tail, err = read(size-n-TailFixed, n+TailFixed); err != nil {
			return nil, err
		}
	}
	tail = tail[int64(len(tail))-n-TailFixed:]
	head, err := read(0, min(size, headerFixed+4096))
	if err != nil {
		return nil, err
	}
	h, _, err := ParseHeader(head)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	plain, err := k.OpenList(name.Object(), tail[:n])
	if err != nil {
		return nil, err
	}
	t, err := ParseTrailer(plain)
	if err != nil {
		return nil, err
	}
	if err := t.Verify(k); err != nil {
		return nil, err
	}
	if t.Name != name || t.Size != size || t.Kind != h.Kind || t.Epoch != h.Epoch || t.Session != h.Session || !bytes.Equal(t.Wrapped, h.Wrapped) || t.Writer != h.Writer {
		return nil, fmt.Errorf("pack %s: header and trailer do not fit: %w", name, chunk.ErrCorrupt)
	}
	return t, nil
}

// Check proves the closing hash of a whole pack file, without any key.
func Check(p []byte) error {
	if len(p) < headerFixed+TailFixed {
		return fmt.Errorf("%d bytes are no pack: %w", len(p), chunk.ErrCorrupt)
	}
	if d := chunk.Digest(p[:len(p)-32]); !bytes.Equal(d[:], p[len(p)-32:]) {
		return fmt.Errorf("its closing hash does not fit: %w", chunk.ErrCorrupt)
	}
	return nil
}

// FrameKey unwraps the key of a pack's frames. Without the epoch's private key
// it is seal.ErrNoKey.
func FrameKey(k *seal.Keys, name Name, epoch uint32, wrapped []byte) (*seal.FrameKey, error) {
	key, err := k.Unwrap(name.Object(), epoch, wrapped)
	if err != nil {
		return nil, err
	}
	return seal.NewFrameKey(key, name[:]), nil
}
