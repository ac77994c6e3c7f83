package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// all visits everything, and counts the values.
func all(f io.ReaderAt, size int64) (values int, err error) {
	b, err := Open(f, size)
	if err != nil {
		return 0, err
	}
	var visit func(e Element) error
	visit = func(e Element) error {
		if e.Bucket != nil {
			return b.WalkBucket(e.Bucket, visit)
		}
		values++
		p := make([]byte, len(e.Value))
		if _, err := f.ReadAt(p, e.Off); err != nil && err != io.EOF || !bytes.Equal(p, e.Value) {
			return errors.New("another value stands where it is said to be")
		}
		return nil
	}
	return values, b.Walk(visit)
}

// fileOf returns a BoltDB file of pages of 4 KiB whose meta page says that it has as
// many as said, with the third page, the root, as given.
func fileOf(said uint64, root []byte) []byte {
	p := make([]byte, 3*4096+len(root))
	m := p[headLen:]
	binary.LittleEndian.PutUint32(m, magic)
	binary.LittleEndian.PutUint32(m[8:], 4096)
	binary.LittleEndian.PutUint64(m[16:], 3)
	binary.LittleEndian.PutUint64(m[40:], said)
	binary.LittleEndian.PutUint64(m[48:], 1)
	h := fnv.New64a()
	h.Write(m[:56])
	binary.LittleEndian.PutUint64(m[56:], h.Sum64())
	copy(p[3*4096:], root)
	return p
}

// leafOf returns a page with elements of flags, position and length of value.
func leafOf(id uint64, size int, elements ...[3]uint32) []byte {
	p := make([]byte, size)
	binary.LittleEndian.PutUint64(p, id)
	binary.LittleEndian.PutUint16(p[8:], leafPage)
	binary.LittleEndian.PutUint16(p[10:], uint16(len(elements)))
	binary.LittleEndian.PutUint32(p[12:], uint32(size/4096-1))
	for i, e := range elements {
		at := p[headLen+i*elementLen:]
		binary.LittleEndian.PutUint32(at, e[0])
		binary.LittleEndian.PutUint32(at[4:], e[1])
		binary.LittleEndian.PutUint32(at[12:], e[2])
	}
	return p
}

// longFile is a file that begins with bytes, and goes on with zeros.
type longFile struct{ head []byte }

func (f longFile) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(f.head)) {
		copy(p, f.head[off:])
	}
	return len(p), nil
}

// TestHostile: what takes memory or time without end is refused at once.
func TestHostile(t *testing.T) {
	if n, err := all(bytes.NewReader(fileOf(4, leafOf(3, 4096, [3]uint32{0, 100, 50}))), 4*4096); err != nil || n != 1 {
		t.Errorf("a good one: %d items, %v", n, err)
	}
	// More pages than any machine has memory for.
	if _, err := all(longFile{fileOf(1<<50, nil)}, 1<<62); !errors.Is(err, system.ErrRefused) {
		t.Errorf("2^50 pages: %v", err)
	}
	// A page of a gigabyte.
	huge := leafOf(3, 4096)
	binary.LittleEndian.PutUint32(huge[12:], 1<<18-1)
	if _, err := all(longFile{fileOf(1<<20, huge)}, 1<<32); !errors.Is(err, system.ErrRefused) {
		t.Errorf("a page of 1 GiB: %v", err)
	}
	// Many elements that all have the same megabyte.
	var same [][3]uint32
	const elements = 60000
	for i := range elements {
		same = append(same, [3]uint32{0, uint32((elements - i) * elementLen), 1 << 20})
	}
	page := leafOf(3, 2<<20, same...)
	if _, err := all(bytes.NewReader(fileOf(3+512, page)), int64(3*4096+len(page))); !errors.Is(err, system.ErrIncomplete) {
		t.Errorf("the same bytes many times: %v", err)
	}
	// A bucket in a bucket that stands in a value.
	inner := leafOf(3, 4096, [3]uint32{bucketFlag, 64, 2000})
	binary.LittleEndian.PutUint16(inner[headLen+64+16+8:], leafPage)
	binary.LittleEndian.PutUint16(inner[headLen+64+16+10:], 1)
	binary.LittleEndian.PutUint32(inner[headLen+64+16+16:], bucketFlag)
	if _, err := all(bytes.NewReader(fileOf(4, inner)), 4*4096); !errors.Is(err, system.ErrIncomplete) || !strings.Contains(err.Error(), "a bucket in a value") {
		t.Errorf("a bucket in a value: %v", err)
	}
}

// sample is a snapshot that etcd 3.4 has written: buckets with pages of their own, and
// in values.
const sample = "../etcd/testdata/snapshot.db"

func TestSample(t *testing.T) {
	p, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := all(bytes.NewReader(p), int64(len(p))); err != nil || n < 5 {
		t.Errorf("%d values, %v", n, err)
	}
	for n := 0; n < len(p)-4096; n += 97 {
		if _, err := all(bytes.NewReader(p[:n]), int64(n)); !errors.Is(err, system.ErrIncomplete) {
			t.Errorf("%d bytes of it: %v", n, err)
		}
	}
}

func FuzzBolt(f *testing.F) {
	p, err := os.ReadFile(sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Add(fileOf(4, leafOf(3, 4096, [3]uint32{0, 100, 50})))
	f.Fuzz(func(t *testing.T, p []byte) {
		_, err := all(bytes.NewReader(p), int64(len(p)))
		if err != nil && !errors.Is(err, system.ErrIncomplete) && !errors.Is(err, system.ErrRefused) && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}
