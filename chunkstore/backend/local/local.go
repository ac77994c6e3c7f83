package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// networkLag is how long network file systems may answer from a cache of their
// own: NFS keeps attributes up to 60 s (acdirmax), SMB less.
const networkLag = 120 * time.Second

// Folder is a Backend in a folder.
type Folder struct {
	dir    string // absolute
	lag    time.Duration
	synced sync.Map                        // directories below dir whose entry is durable
	noLink atomic.Bool                     // link(2) is refused here
	link   func(old, newName string) error // os.Link but in tests
}

var _ backend.Backend = (*Folder)(nil)

// Open returns the Backend of a folder that exists. It touches nothing. A
// folder that does not exist is an error that wraps fs.ErrNotExist.
func Open(dir string) (*Folder, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(abs)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: abs, Err: syscall.ENOTDIR}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(abs, &st); err != nil {
		return nil, &fs.PathError{Op: "statfs", Path: abs, Err: err}
	}
	f := &Folder{dir: abs, link: os.Link}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC:
		f.lag = networkLag
	}
	return f, nil
}

// Create makes the folder, with those above it where they are missing, and
// opens it. A folder that exists must be empty, but for a lost+found and what
// an interrupted Create or Put left; otherwise the error wraps fs.ErrExist.
func Create(dir string) (*Folder, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := makeDurable(abs); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(abs)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if name := e.Name(); name != "lost+found" && name != tmpName {
			return nil, fmt.Errorf("%s holds %q already: choose an empty folder: %w", abs, name, fs.ErrExist)
		}
	}
	return Open(abs)
}

// makeDurable creates dir and what is missing above it, and lets the entry of
// each created directory reach the disk.
func makeDurable(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir {
		if err = makeDurable(filepath.Dir(dir)); err == nil {
			err = os.Mkdir(dir, 0o700)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// syncDir lets the entries of dir reach the disk. Some file systems cannot and
// say so with EINVAL: they have no better promise to give.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// file returns where an object is, and validates its name: nothing that
// ValidName accepts leads out of the folder.
func (f *Folder) file(ctx context.Context, verb, name string) (string, error) {
	if !backend.ValidName(name) {
		return "", backend.InvalidName(verb, name)
	}
	return filepath.Join(f.dir, filepath.FromSlash(name)), ctx.Err()
}

// Get implements backend.Backend.
func (f *Folder) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	file, err := f.file(ctx, "get", name)
	if err != nil {
		return nil, err
	}
	fd, err := os.Open(file)
	if err != nil {
		return nil, absent(err)
	}
	defer fd.Close()
	info, err := fd.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "get", Path: file, Err: fs.ErrNotExist}
	}
	if n, err = backend.Range(file, info.Size(), off, n); err != nil {
		return nil, err
	}
	p := make([]byte, n)
	if m, err := fd.ReadAt(p, off); int64(m) < n {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("get %s: %d of %d bytes from %d on: %w", file, m, n, off, err)
	}
	return p, nil
}

// absent makes fs.ErrNotExist of the error for a path that goes through a file.
func absent(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) && pe.Err == syscall.ENOTDIR {
		return &fs.PathError{Op: pe.Op, Path: pe.Path, Err: fs.ErrNotExist}
	}
	return err
}

// List implements backend.Backend. Files that can be no objects are passed
// over.
func (f *Folder) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(backend.Info{}, err)
			return
		}
		dir, _ := path.Split(prefix)
		if dir = strings.TrimSuffix(dir, "/"); dir != "" && !backend.ValidName(dir) {
			return // no object's name starts so
		}
		f.walk(ctx, dir, prefix, yield)
	}
}

// walk yields what is below the directory, and returns whether to go on.
func (f *Folder) walk(ctx context.Context, dir, prefix string, yield func(backend.Info, error) bool) bool {
	fd, err := os.Open(filepath.Join(f.dir, filepath.FromSlash(dir)))
	if errors.Is(absent(err), fs.ErrNotExist) && dir != "" {
		return true
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
			if !backend.ValidName(name) || !related(name, prefix) {
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

// Remove implements backend.Backend. The removal is durable when it returns.
func (f *Folder) Remove(ctx context.Context, name string) error {
	file, err := f.file(ctx, "remove", name)
	if err != nil {
		return err
	}
	// Not os.Remove: that would take an empty directory, too.
	err = unix.Unlink(file)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "remove", Path: file, Err: err}
	}
	return syncDir(filepath.Dir(file))
}

// Lag implements backend.Backend: zero, but 120 s where the folder is on NFS or
// SMB.
func (f *Folder) Lag() time.Duration { return f.lag }

// String implements backend.Backend: the folder's absolute path.
func (f *Folder) String() string { return f.dir }
