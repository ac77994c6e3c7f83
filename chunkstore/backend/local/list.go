package local

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// List implements backend.Backend. Files that can be no objects are passed
// over.
func (f *Folder) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(backend.Info{}, err)
			return
		}
		dir, _ := path.Split(prefix)
		if dir = strings.TrimSuffix(dir, "/"); dir != "" && !validName(dir) {
			return // no object's name starts so
		}
		f.walk(ctx, dir, prefix, yield)
	}
}

// walk yields what is below the directory, and returns whether to go on.
func (f *Folder) walk(ctx context.Context, dir, prefix string, yield func(backend.Info, error) bool) bool {
	fd, err := os.Open(filepath.Join(f.dir, filepath.FromSlash(dir)))
	if errors.Is(absent(err), fs.ErrNotExist) && dir != "" {
		if err = f.here(); err == nil {
			return true
		}
	}
	if err != nil {
		yield(backend.Info{}, err)
		return false
	}
	defer fd.Close()
	for {
		// Bit by bit: a directory of packs may be large.
		entries, err := fd.ReadDir(1024)
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			if e.Name() == contentName && dir != "" {
				name = dir // the directory is the object
			} else if !validName(name) || !related(name, prefix) {
				continue
			}
			if !f.visit(ctx, name, e, prefix, yield) {
				return false
			}
		}
		switch {
		case err == io.EOF, errors.Is(absent(err), fs.ErrNotExist): // removed meanwhile
			return true
		case err != nil:
			yield(backend.Info{}, err)
			return false
		}
	}
}

// related reports whether name starts with prefix, or may be a directory of
// such names.
func related(name, prefix string) bool {
	return strings.HasPrefix(name, prefix) || strings.HasPrefix(prefix, name+"/")
}

func (f *Folder) visit(ctx context.Context, name string, e fs.DirEntry, prefix string, yield func(backend.Info, error) bool) bool {
	if err := ctx.Err(); err != nil {
		yield(backend.Info{}, err)
		return false
	}
	info, err := e.Info()
	if errors.Is(err, syscall.ESTALE) {
		info, err = e.Info() // another machine has removed it, as the second look tells
	}
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		// Somebody keeps a part of the repository elsewhere.
		info, err = os.Stat(filepath.Join(f.dir, filepath.FromSlash(name)))
	}
	switch {
	case errors.Is(absent(err), fs.ErrNotExist): // removed meanwhile
		return true
	case err != nil:
		yield(backend.Info{}, err)
		return false
	case info.IsDir():
		return f.walk(ctx, name, prefix, yield)
	case info.Mode().IsRegular() && strings.HasPrefix(name, prefix):
		return yield(backend.Info{Name: name, Size: info.Size(), ModTime: info.ModTime()}, nil)
	}
	return true
}

// absent makes fs.ErrNotExist of the error for a path that goes through a file.
func absent(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) && pe.Err == syscall.ENOTDIR {
		return &fs.PathError{Op: pe.Op, Path: pe.Path, Err: fs.ErrNotExist}
	}
	return err
}
