package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

func TestLiveArguments(t *testing.T) {
	for arg, want := range map[string]string{"/etc": "/etc", ".": ".", "..": "..", "./a:b": "./a:b", "dir:a": "a", "dir:/a": "/a", "latest": "", "web/latest": "", "4f3a:/etc": ""} {
		p, live := liveArg(arg)
		if live != (want != "") || live && p != want {
			t.Errorf("%q: %q, %v", arg, p, live)
		}
	}
}

func TestIgnoredFields(t *testing.T) {
	f, err := parseFields([]string{"mtime", "owner"})
	if err != nil || f != diff.Mtime|diff.Owner {
		t.Errorf("%v, %v", f, err)
	}
	if _, err := parseFields([]string{"color"}); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "xattrs") {
		t.Errorf("%v", err)
	}
}

// storedFile is a stored file that must not be read where IDs decide.
type storedFile struct {
	tree.Node
	attr  tree.Attr
	exts  []tree.Extent
	data  []byte
	reads *int
}

func (s *storedFile) Attr() *tree.Attr                             { return &s.attr }
func (s *storedFile) Xattrs(context.Context) ([]tree.Xattr, error) { return nil, nil }

func (s *storedFile) Extents(_ context.Context, off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		for _, x := range s.exts {
			if x.Off+x.Len > off && !yield(x, nil) {
				return
			}
		}
	}
}

func (s *storedFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	*s.reads += len(p)
	n := copy(p, s.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func TestLiveFilesAreHashedAndStoredOnesNotRead(t *testing.T) {
	sum := chunk.NewHasher([32]byte{1}).Sum
	mtime := time.Unix(1e9, 0)
	data := bytes.Repeat([]byte("0123456789"), 1000)
	clear(data[6000:9000])
	for _, c := range []struct {
		name    string
		quick   bool
		mtime   time.Time
		change  int // offset of a byte that is changed; -1: none
		content bool
		reads   int
	}{
		{"equal", false, mtime, -1, false, 3000},
		{"a byte in a chunk", false, mtime, 100, true, 0},
		{"a byte in the last chunk", false, mtime, 9999, true, 0},
		{"a byte in a zero run", false, mtime, 7000, true, 3000},
		{"trusted", true, mtime, 100, false, 0},
		{"another mtime", true, mtime.Add(1), 100, true, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "f")
			live := bytes.Clone(data)
			if c.change >= 0 {
				live[c.change] ^= 0x55
			}
			must(t, os.WriteFile(p, live, 0o644))
			must(t, os.Chtimes(p, c.mtime, c.mtime))
			n, err := source.Open(p)
			must(t, err)
			reads := 0
			s := &storedFile{attr: *n.Attr(), data: data, reads: &reads, exts: []tree.Extent{
				{Off: 0, Len: 6000, Kind: tree.Data, ID: sum(data[:6000])}, {Off: 6000, Len: 3000, Kind: tree.Zero}, {Off: 9000, Len: 1000, Kind: tree.Data, ID: sum(data[9000:])}}}
			s.attr.Mtime = tree.TimeOf(mtime)
			h := &hashing{sum: sum, quick: c.quick}
			opt := diff.Options{IDsComparable: true, Content: true, Quick: c.quick, Ignore: diff.Mtime}
			found := false
			for ch, err := range diff.Compare(context.Background(), s, h.wrap(n, s), opt) {
				must(t, err)
				found = found || ch.Fields&diff.Content != 0
			}
			if found != c.content || reads != c.reads {
				t.Errorf("different: %v, %d bytes of the stored side were read; want %v, %d", found, reads, c.content, c.reads)
			}
		})
	}
}
