package featurebase

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// boltOf returns a BoltDB file of pages of 4 KiB whose meta page says that it has as
// many as said, with the third page, the root, as given.
func boltOf(said uint64, root []byte) []byte {
	p := make([]byte, 3*4096+len(root))
	m := p[boltHeader:]
	binary.LittleEndian.PutUint32(m, boltMagic)
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
	binary.LittleEndian.PutUint16(p[8:], boltLeaf)
	binary.LittleEndian.PutUint16(p[10:], uint16(len(elements)))
	binary.LittleEndian.PutUint32(p[12:], uint32(size/4096-1))
	for i, e := range elements {
		at := p[boltHeader+i*boltElement:]
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

// TestHostileBolt: what takes memory or time without end is refused at once.
func TestHostileBolt(t *testing.T) {
	if _, n, err := checkBolt(bytes.NewReader(boltOf(4, leafOf(3, 4096, [3]uint32{0, 100, 50}))), 4*4096); err != nil || n != 1 {
		t.Errorf("a good one: %d items, %v", n, err)
	}
	// More pages than any machine has memory for.
	if _, _, err := checkBolt(longFile{boltOf(1<<50, nil)}, 1<<62); !errors.Is(err, system.ErrRefused) {
		t.Errorf("2^50 pages: %v", err)
	}
	// A page of a gigabyte.
	huge := leafOf(3, 4096)
	binary.LittleEndian.PutUint32(huge[12:], 1<<18-1)
	if _, _, err := checkBolt(longFile{boltOf(1<<20, huge)}, 1<<32); !errors.Is(err, system.ErrRefused) {
		t.Errorf("a page of 1 GiB: %v", err)
	}
	// Many elements that all have the same megabyte.
	var same [][3]uint32
	const elements = 60000
	for i := range elements {
		same = append(same, [3]uint32{0, uint32((elements - i) * boltElement), 1 << 20})
	}
	page := leafOf(3, 2<<20, same...)
	if _, _, err := checkBolt(bytes.NewReader(boltOf(3+512, page)), int64(3*4096+len(page))); !errors.Is(err, system.ErrIncomplete) {
		t.Errorf("the same bytes many times: %v", err)
	}
	// A bucket in a bucket that stands in a value.
	inner := leafOf(3, 4096, [3]uint32{boltBucket, 64, 2000})
	binary.LittleEndian.PutUint16(inner[boltHeader+64+16+8:], boltLeaf)
	binary.LittleEndian.PutUint16(inner[boltHeader+64+16+10:], 1)
	binary.LittleEndian.PutUint32(inner[boltHeader+64+16+16:], boltBucket)
	if _, _, err := checkBolt(bytes.NewReader(boltOf(4, inner)), 4*4096); !errors.Is(err, system.ErrIncomplete) || !strings.Contains(err.Error(), "a bucket in a value") {
		t.Errorf("a bucket in a value: %v", err)
	}
}

// TestStalled: a node that sends, or takes, nothing any more is given up.
func TestStalled(t *testing.T) {
	stop := make(chan struct{})
	c, n := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			// All is there, and takes a while to be taken in.
			_, _ = io.Copy(io.Discard, r.Body)
			time.Sleep(600 * time.Millisecond)
			return
		}
		if r.Method == http.MethodGet {
			_, _ = w.Write([]byte("the beginning"))
			w.(http.Flusher).Flush()
		}
		<-stop
	})
	defer close(stop)
	c.stall, c.period = 200*time.Millisecond, 0
	if p, err := c.get(context.Background(), n.base(), "/x"); !errors.Is(err, errStalled) || !passing(err) {
		t.Errorf("%q %v", p, err)
	}
	// More than the buffers between take.
	const size = 64 << 20
	err := c.send(context.Background(), http.MethodPost, n.base(), "/x", size, func() io.Reader { return io.LimitReader(zeros{}, size) })
	if !errors.Is(err, errStalled) {
		t.Errorf("upload: %v", err)
	}
	if err := c.send(context.Background(), http.MethodPost, n.base(), "/slow", 5, bytesBody([]byte("12345"))); err != nil {
		t.Errorf("a node that is slow with what it has: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := c.get(ctx, n.base(), "/x"); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestSaid: what a node says does nothing to a terminal, and tells no token.
func TestSaid(t *testing.T) {
	c, n := answering(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "\x1b[2Jwho is "+r.Header.Get("Authorization")+"?", http.StatusBadRequest)
	})
	_, err := c.get(context.Background(), n.base(), "/x")
	if err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\x1b") || !strings.Contains(err.Error(), "who is") {
		t.Errorf("%q", err)
	}
}

// TestProven: an address at which another node answers is not that of the node, and the
// token goes to none that does not encrypt where the others do.
func TestProven(t *testing.T) {
	c, n := answering(t, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(`{"localID":"other"}`)) })
	n.ID, c.base = "mine", "http://elsewhere:1"
	cl := &cluster{Nodes: []*node{n}}
	if err := c.proven(context.Background(), cl); !errors.Is(err, system.ErrRefused) || !strings.Contains(err.Error(), "node other") {
		t.Errorf("%v", err)
	}
	n.ID = "other"
	if err := c.proven(context.Background(), cl); err != nil {
		t.Error(err)
	}
	c.base = "https://elsewhere:1"
	if err := c.proven(context.Background(), cl); !errors.Is(err, system.ErrRefused) || !strings.Contains(err.Error(), "does not encrypt") {
		t.Errorf("%v", err)
	}
	c.base = "http://elsewhere:1"
	for _, host := range []string{"", "a b", "a/b", "u@h", "a\x1b[2J"} {
		n.URI.Host = host
		if err := c.proven(context.Background(), cl); !errors.Is(err, system.ErrRefused) || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q: %v", host, err)
		}
	}
	n.URI.Host, n.State = "[::1]", "DOWN"
	if err := c.proven(context.Background(), cl); err != nil || n.base() != "http://[::1]:"+n.base()[len("http://[::1]:"):] {
		t.Errorf("%s: %v", n.base(), err)
	}
}
