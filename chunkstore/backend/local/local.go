package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// Folder is a Backend in a folder.
type Folder struct {
	dir    string // absolute
	kind   kind
	made   bool // a repository was here when it was opened
	way    *ways
	synced sync.Map // directories below dir whose entry is durable
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
	var dev uint64
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		dev = sys.Dev
	}
	_, err = os.Lstat(filepath.Join(abs, "config"))
	return &Folder{dir: abs, kind: kindOf(uint32(st.Type), dev), made: err == nil, way: &ways{link: os.Link, rename2: rename2, rename: os.Rename}}, nil
}

// here is an error where the repository that was opened is not there any more.
// A file system that is not mounted leaves an empty folder: what is missing from
// it is not known to be missing, and nothing may be put into it.
func (f *Folder) here() error {
	if !f.made {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(f.dir, "config")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: the repository that was here is gone: is its file system still mounted? %w", f.dir, syscall.ESTALE)
	}
	return nil
}

// Create makes the folder, with those above it where they are missing, and
// opens it. A folder that exists must be empty, but for what file systems keep
// there (lost+found, .snapshot), and what an interrupted Create or Put left;
// otherwise the error wraps fs.ErrExist.
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
		if name := e.Name(); name != "lost+found" && name != tmpName && !foreign(name) {
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

// foreign reports whether some file system makes entries of that name by itself:
// where files were removed that are open, and old states of the whole.
func foreign(entry string) bool {
	for _, mark := range []string{".nfs", ".fuse_hidden", ".cifs", ".smb", ".snapshot", ".zfs"} {
		if strings.HasPrefix(entry, mark) {
			return true
		}
	}
	return false
}

// validName is backend.ValidName without the names that are not ours to give.
func validName(name string) bool {
	return backend.ValidName(name) && !slices.ContainsFunc(strings.Split(name, "/"), foreign)
}

// file returns where an object is, and validates its name: nothing that
// validName accepts leads out of the folder.
func (f *Folder) file(ctx context.Context, verb, name string) (string, error) {
	if !validName(name) {
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
	var p []byte
	for try, wait := 1, 20*time.Millisecond; ; try, wait = try+1, 2*wait {
		p, err = get(file, off, n)
		if !f.passing(err) || try == passingTries {
			break
		}
		if perr := pause(ctx, wait); perr != nil {
			return nil, errors.Join(perr, err)
		}
	}
	if err = absent(err); errors.Is(err, fs.ErrNotExist) {
		if herr := f.here(); herr != nil {
			return nil, herr
		}
	}
	return p, err
}

// passingTries is how often a file is opened that cannot be for a moment; about
// two and a half seconds.
const passingTries = 8

// passing reports whether a file may be opened after all: NFS calls stale what
// another machine has put anew or removed, and SMB servers call invalid a file
// that is also open under another name, that of its draft.
func (f *Folder) passing(err error) bool {
	return errors.Is(err, syscall.ESTALE) || !f.kind.alone && errors.Is(err, syscall.EINVAL)
}

func get(file string, off, n int64) ([]byte, error) {
	fd, info, err := openObject(file)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
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

// openObject opens what holds the bytes of the object at file: that, or the
// content in the directory of that name.
func openObject(file string) (*os.File, fs.FileInfo, error) {
	for _, path := range []string{file, filepath.Join(file, contentName)} {
		fd, err := os.Open(path)
		if err != nil {
			return nil, nil, err
		}
		info, err := fd.Stat()
		if err == nil && info.Mode().IsRegular() {
			return fd, info, nil
		}
		fd.Close()
		if err != nil {
			return nil, nil, err
		}
		if !info.IsDir() {
			break
		}
	}
	return nil, nil, &fs.PathError{Op: "get", Path: file, Err: fs.ErrNotExist}
}

// Remove implements backend.Backend. The removal is durable when it returns.
func (f *Folder) Remove(ctx context.Context, name string) error {
	file, err := f.file(ctx, "remove", name)
	if err != nil {
		return err
	}
	return patiently(ctx, func() error { return f.remove(file) })
}

func (f *Folder) remove(file string) error {
	// Not os.Remove: that would take an empty directory, too.
	err := unix.Unlink(file)
	if err == unix.EISDIR || err == unix.EPERM || err == unix.EACCES {
		if info, serr := os.Lstat(file); serr == nil && info.IsDir() {
			return f.removeDir(file)
		}
	}
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return f.here()
	}
	if err != nil {
		return &fs.PathError{Op: "remove", Path: file, Err: err}
	}
	return syncDir(filepath.Dir(file))
}

// removeDir removes an object that is a directory with its content in it. It is
// gone with its content; an empty directory is nothing.
func (f *Folder) removeDir(dir string) error {
	content := filepath.Join(dir, contentName)
	err := unix.Unlink(content)
	if err == unix.ENOENT {
		return nil // of the name begins that of others
	}
	if err != nil {
		return &fs.PathError{Op: "remove", Path: content, Err: err}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
		// Perhaps it was put again. The content that was removed must stay so.
		if err := syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(filepath.Dir(dir))
}

// Lag implements backend.Backend: zero, but 120 s where the folder is on a file
// system of the network whose clients keep what they saw: NFS, SMB, and what a
// FUSE program makes of anything but a disk of this machine.
func (f *Folder) Lag() time.Duration { return f.kind.lag }

// String implements backend.Backend: the folder's absolute path.
func (f *Folder) String() string { return f.dir }
