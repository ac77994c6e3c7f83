package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// tally is what a tree holds. Two ways to read one tree must give the same.
type tally struct {
	Files int64 `json:"files"` // regular ones; every name of a hard link counts
	Dirs  int64 `json:"dirs"`  // the top one included
	Links int64 `json:"links"` // symbolic
	Bytes int64 `json:"bytes"` // of regular files
}

func (t tally) String() string {
	return fmt.Sprintf("%d files, %d directories, %d links, %d bytes", t.Files, t.Dirs, t.Links, t.Bytes)
}

// want returns an error if the tally differs from what it should be.
func (t tally) want(whole tally) error {
	if t != whole {
		return fmt.Errorf("holds %s; the source has %s", t, whole)
	}
	return nil
}

func (t *tally) add(mode fs.FileMode, size int64) {
	switch mode.Type() {
	case 0:
		t.Files++
		t.Bytes += size
	case fs.ModeDir:
		t.Dirs++
	case fs.ModeSymlink:
		t.Links++
	}
}

// tallyDir counts a tree on disk.
func tallyDir(ctx context.Context, dir string) (tally, error) {
	var t tally
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			t.add(info.Mode(), info.Size())
		}
		return err
	})
	return t, err
}

// tallyFind counts what `find -printf '%y %s\n'` prints.
func tallyFind(r io.Reader) (tally, error) {
	kinds := map[string]fs.FileMode{"f": 0, "d": fs.ModeDir, "l": fs.ModeSymlink}
	var t tally
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		kind, number, _ := strings.Cut(lines.Text(), " ")
		size, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return t, fmt.Errorf("find printed %q", lines.Text())
		}
		mode, ok := kinds[kind]
		if !ok {
			mode = fs.ModeIrregular
		}
		t.add(mode, size)
	}
	return t, lines.Err()
}

// tallyTar counts what is in a tar archive, and so reads all of it.
func tallyTar(r io.Reader) (tally, error) {
	var t tally
	for tr := tar.NewReader(bufio.NewReaderSize(r, 1<<20)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, fmt.Errorf("the archive: %w", err)
		}
		t.add(h.FileInfo().Mode(), h.Size)
	}
}

// treeSize returns the bytes of the regular files below dir, which may not
// exist.
func treeSize(ctx context.Context, dir string) (int64, error) {
	t, err := tallyDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return t.Bytes, err
}

// systemDirs returns what every Linux machine with Go has: many small texts,
// libraries, sources.
func systemDirs(goroot string) []string {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "riscv64": "riscv64"}[runtime.GOARCH]
	dirs := []string{"/usr/share"}
	for _, lib := range []string{"/usr/lib/" + arch + "-linux-gnu", "/usr/lib64", "/usr/lib"} {
		if info, err := os.Stat(lib); err == nil && info.IsDir() {
			dirs = append(dirs, lib)
			break
		}
	}
	if goroot != "" {
		dirs = append(dirs, goroot)
	}
	return dirs
}

// copier copies directories, or an even sample of them, into one tree.
// Contents, permissions and times of files are kept, and symbolic links; owners,
// extended attributes and hard links are not.
type copier struct {
	files, bytes int64   // at most, together
	largest      int64   // bytes of a file at most
	keep         float64 // share of the files that is copied, chosen by a hash of their path
	done         tally
}

// copyTree copies each source to a folder of its own name below dst. If they
// hold more than files or bytes, a sample is taken across all of them.
func copyTree(ctx context.Context, dst string, sources []string, files, bytes int64) (tally, error) {
	var all, small tally
	c := &copier{files: files, bytes: bytes, largest: unlimited, keep: 1}
	for _, src := range sources {
		err := eachFile(ctx, src, func(_ string, info fs.FileInfo) error {
			all.add(info.Mode(), info.Size())
			if info.Size() <= bytes/20 {
				small.add(info.Mode(), info.Size())
			}
			return nil
		})
		if err != nil {
			return tally{}, err
		}
	}
	if all.Files+all.Links > files || all.Bytes > bytes {
		// A few huge files must not take the place of all others.
		c.largest = bytes / 20
		c.keep = min(1, float64(files)/float64(max(small.Files+small.Links, 1)), float64(bytes)/float64(max(small.Bytes, 1)))
	}
	for i, src := range sources {
		if err := c.copyDir(ctx, src, filepath.Join(dst, fmt.Sprintf("%d-%s", i, filepath.Base(src)))); err != nil {
			return tally{}, err
		}
	}
	if c.done.Files == 0 {
		return tally{}, fmt.Errorf("%s: no files to copy within the limits of %d files and %d bytes", strings.Join(sources, ", "), files, bytes)
	}
	return tallyDir(ctx, dst)
}

// eachFile calls do for the readable regular files and symbolic links below
// dir. Directories that cannot be read are passed over.
func eachFile(ctx context.Context, dir string, do func(path string, info fs.FileInfo) error) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && path == dir:
			return err
		case err != nil, !e.Type().IsRegular() && e.Type() != fs.ModeSymlink:
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil // gone since
		}
		return do(path, info)
	})
}

func (c *copier) copyDir(ctx context.Context, src, dst string) error {
	root, err := filepath.EvalSymlinks(src)
	if err != nil {
		return err
	}
	return eachFile(ctx, root, func(path string, info fs.FileInfo) error {
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		size := info.Size()
		if !info.Mode().IsRegular() {
			size = 0
		}
		if c.done.Files+c.done.Links >= c.files || c.done.Bytes+size > c.bytes || size > c.largest || !chosen(rel, c.keep) {
			return nil
		}
		to := filepath.Join(dst, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyFile(path, to, info); err != nil {
			if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
				return nil // of another user, or gone since
			}
			return err
		}
		c.done.add(info.Mode(), size)
		return nil
	})
}

// chosen tells whether a path belongs to the share that is kept.
func chosen(path string, keep float64) bool {
	if keep >= 1 {
		return true
	}
	h := fnv.New64a()
	_, _ = io.WriteString(h, path) // cannot fail
	// FNV's high bits change little with the last bytes: mix them.
	v := h.Sum64()
	v ^= v >> 32
	v *= 0x9e3779b97f4a7c15
	return float64(v>>11)/(1<<53) < keep
}

func copyFile(from, to string, info fs.FileInfo) (err error) {
	if info.Mode().Type() == fs.ModeSymlink {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm()|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Close())
	if err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// unlimited is no limit.
const unlimited = math.MaxInt64
