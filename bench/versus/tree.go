package main

import (
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
	"strings"

	"github.com/cutbankfs/cutbank/bench/tool"
)

// treeSize returns the bytes of the regular files below dir, which may not
// exist.
func treeSize(ctx context.Context, dir string) (int64, error) {
	t, err := tool.TallyDir(ctx, dir)
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
	done         tool.Tally
}

// copyTree copies each source to a folder of its own name below dst. If they
// hold more than files or bytes, a sample is taken across all of them.
func copyTree(ctx context.Context, dst string, sources []string, files, bytes int64) (tool.Tally, error) {
	var all, small tool.Tally
	c := &copier{files: files, bytes: bytes, largest: unlimited, keep: 1}
	for _, src := range sources {
		err := eachFile(ctx, src, func(_ string, info fs.FileInfo) error {
			all.Add(info.Mode(), info.Size())
			if info.Size() <= bytes/20 {
				small.Add(info.Mode(), info.Size())
			}
			return nil
		})
		if err != nil {
			return tool.Tally{}, err
		}
	}
	if all.Files+all.Links > files || all.Bytes > bytes {
		// A few huge files must not take the place of all others.
		c.largest = bytes / 20
		c.keep = min(1, float64(files)/float64(max(small.Files+small.Links, 1)), float64(bytes)/float64(max(small.Bytes, 1)))
	}
	for i, src := range sources {
		if err := c.copyDir(ctx, src, filepath.Join(dst, fmt.Sprintf("%d-%s", i, filepath.Base(src)))); err != nil {
			return tool.Tally{}, err
		}
	}
	if c.done.Files == 0 {
		return tool.Tally{}, fmt.Errorf("%s: no files to copy within the limits of %d files and %d bytes", strings.Join(sources, ", "), files, bytes)
	}
	return tool.TallyDir(ctx, dst)
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
		c.done.Add(info.Mode(), size)
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
