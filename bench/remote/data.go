package main

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"

	"github.com/cutbankfs/cutbank/bench/tool"
)

// contents are the regular files of a tree, by their paths below it.
type contents map[string][sha256.Size]byte

// tree is a source.
type tree struct {
	dir   string
	holds contents
	whole tool.Tally
	some  []string // paths of files far from each other, in the order of names
}

// filesInDir is how many files a directory of small files has.
const filesInDir = 100

// Sizes of small files, in bytes.
const smallest, largest = 1 << 10, 16 << 10

// writer fills trees with records of which one half is random and the other one
// always the same: no chunk is there twice, and any compressor makes about half of
// them.
type writer struct {
	src *rand.ChaCha8
	buf []byte
}

// block is how much is made at once, in bytes: a multiple of the record's size.
const block = 1 << 20

// constant is the half of a record that never changes.
const constant = "silt, sand, gravel; layer, layer"

func newWriter(seed uint64) *writer {
	var s [32]byte
	for i := range 8 {
		s[i] = byte(seed >> (8 * i))
	}
	return &writer{src: rand.NewChaCha8(s), buf: make([]byte, block)}
}

// file writes one of that size, and returns its sum.
func (w *writer) file(ctx context.Context, name string, size int64) (sum [sha256.Size]byte, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	for size > 0 {
		if ctx.Err() != nil {
			return sum, context.Cause(ctx)
		}
		p := w.buf[:min(size, block)]
		_, _ = w.src.Read(p) // cannot fail
		for i := len(constant); i < len(p); i += 2 * len(constant) {
			copy(p[i:], constant)
		}
		_, _ = h.Write(p) // likewise
		if _, err := f.Write(p); err != nil {
			return sum, err
		}
		size -= int64(len(p))
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// plant makes a tree of n files with the sizes that size returns, in directories.
func (w *writer) plant(ctx context.Context, dir string, n int, size func() int64) (tree, error) {
	t := tree{dir: dir, holds: contents{}}
	for i := range n {
		name := fmt.Sprintf("d%03d/f%05d", i/filesInDir, i)
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return t, err
		}
		sum, err := w.file(ctx, file, size())
		if err != nil {
			return t, err
		}
		t.holds[name] = sum
		if i == n/3 || i == 2*n/3 {
			t.some = append(t.some, name)
		}
	}
	var err error
	t.whole, err = tool.TallyDir(ctx, dir)
	return t, err
}

// smallFiles plants n files of 1 to 16 KiB.
func (w *writer) smallFiles(ctx context.Context, dir string, n int) (tree, error) {
	rng := rand.New(w.src)
	return w.plant(ctx, dir, n, func() int64 { return smallest + rng.Int64N(largest-smallest+1) })
}

// bigFiles plants n files that hold so many bytes together.
func (w *writer) bigFiles(ctx context.Context, dir string, n int, bytes int64) (tree, error) {
	left := int64(n)
	return w.plant(ctx, dir, n, func() int64 {
		size := bytes / left
		bytes, left = bytes-size, left-1
		return size
	})
}

// want returns an error that names a file if two trees differ.
func (c contents) want(whole contents) error {
	if maps.Equal(c, whole) {
		return nil
	}
	for name, sum := range whole {
		if got, ok := c[name]; !ok {
			return fmt.Errorf("lacks %s, and holds %d files of %d", name, len(c), len(whole))
		} else if got != sum {
			return fmt.Errorf("holds other bytes in %s", name)
		}
	}
	return fmt.Errorf("holds %d files; the source has %d", len(c), len(whole))
}

// readDir returns the contents of a folder.
func readDir(ctx context.Context, dir string) (contents, error) {
	c := contents{}
	err := filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		return c.add(rel, f)
	})
	return c, err
}

// readTar returns the contents of an archive of ".".
func readTar(r io.Reader) (contents, error) {
	c := contents{}
	for tr := tar.NewReader(bufio.NewReaderSize(r, 1<<20)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			return c, fmt.Errorf("the archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := c.add(path.Clean(h.Name), tr); err != nil {
			return c, fmt.Errorf("the archive: %w", err)
		}
	}
}

func (c contents) add(name string, r io.Reader) error {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	c[name] = [sha256.Size]byte(h.Sum(nil))
	return nil
}
