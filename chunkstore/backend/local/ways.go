package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// contentName is the file that holds the bytes of an object that is a directory.
const contentName = "content" + tmpMark

// ways are the calls that give a file its name, and which of them the file
// system is known to refuse.
type ways struct {
	link, rename2, rename                func(old, newName string) error // of the system, but in tests
	noLink, noRename2, wraps, unenforced atomic.Bool
}

func rename2(old, newName string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, newName, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "renameat2", Old: old, New: newName, Err: err}
	}
	return nil
}

// draft is an object that is written, and has no name yet.
type draft struct {
	path  string
	dir   bool        // path is a directory, and the content is in it
	info  fs.FileInfo // of the content
	bytes []byte
}

// remove removes what is left of it.
func (d *draft) remove() {
	if d.dir {
		// Under its name the directory may be the object by now, though an error
		// said otherwise, and this machine still find it here.
		_ = sweepDir(filepath.Split(d.path))
		return
	}
	os.Remove(d.path)
}

// publishTries is how often a name is asked for, where something that is no
// object was in the way.
const publishTries = 5

// publish gives the draft its name unless that is taken.
func (f *Folder) publish(ctx context.Context, name string, d *draft, file string) error {
	for try := 1; ; try++ {
		err := patiently(ctx, func() error { return f.move(name, d, file) })
		switch {
		case err == nil, d.isAt(file):
			return nil // where it had been done, only the answer was lost
		case errors.Is(err, fs.ErrNotExist) && try < publishTries:
			// Somebody tidied up empty directories.
			f.synced.Clear()
			if err := f.durableDir(filepath.Dir(file)); err != nil {
				return err
			}
		case isObject(file), errors.Is(err, fs.ErrExist) && (try == publishTries || !vacated(file)):
			if err := f.await(ctx, file); err != nil || d.isAt(file) {
				return err
			}
			return taken(file)
		case !errors.Is(err, fs.ErrExist):
			return err
		}
	}
}

// move makes one attempt, in the best way there is.
func (f *Folder) move(name string, d *draft, file string) error {
	w := f.way
	if !d.dir && !w.noLink.Load() {
		// SMB servers may forbid what they do not have.
		err := w.link(d.path, file)
		if !refused(err) && (f.kind.alone || !errors.Is(err, fs.ErrPermission)) {
			return err
		}
		w.noLink.Store(true)
	}
	// Of a file system that other machines have too, nobody knows whether it
	// carries the flag to where it is decided: SMB's client does not.
	if !d.dir && f.kind.alone && !w.noRename2.Load() {
		if err := w.rename2(d.path, file); !refused(err) {
			return err
		}
		w.noRename2.Store(true)
	}
	if w.unenforced.Load() || backend.PutOnce(name) {
		if _, err := os.Lstat(file); err == nil {
			return &fs.PathError{Op: "put", Path: file, Err: fs.ErrExist}
		}
		return w.rename(d.path, file)
	}
	if err := f.wrap(d); err != nil {
		return err
	}
	err := w.rename(d.path, file)
	if refused(err) && !isObject(file) {
		os.RemoveAll(d.path) // it was not moved, and cannot be
		return f.unfenced(err)
	}
	if errors.Is(err, syscall.ENOTEMPTY) {
		return &fs.PathError{Op: "put", Path: file, Err: fs.ErrExist}
	}
	return err
}

// wrap puts the draft into a directory.
func (f *Folder) wrap(d *draft) error {
	if d.dir {
		return nil
	}
	if err := f.mayWrap(); err != nil {
		return err
	}
	dir := strings.TrimSuffix(d.path, tmpMark) + "-d" + tmpMark
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	f.own(dir)
	err := f.way.rename(d.path, filepath.Join(dir, contentName))
	if err == nil || isObject(dir) {
		d.path, d.dir = dir, true
		return syncDir(dir)
	}
	os.Remove(dir)
	if refused(err) {
		return f.unfenced(err)
	}
	return err
}

func (f *Folder) unfenced(err error) error {
	return fmt.Errorf("the file system of %s can neither link files nor move directories, so that two could create one object: use another: %w: %w", f.dir, backend.ErrUnfenced, err)
}

// mayWrap is an error where the repository was made by other ways. Programs that
// do not know objects in directories would not see those that are put now, and
// remove what they need, once the folder is on another file system again.
func (f *Folder) mayWrap() error {
	if f.way.wraps.Load() {
		return nil
	}
	configs, err := os.ReadDir(filepath.Join(f.dir, "config"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range configs {
		if !e.IsDir() && validName(e.Name()) {
			return fmt.Errorf("%s was made where files can be linked, and was moved to where they cannot: it can be read here, but not written; "+
				"make a new repository on this file system (cutbank init --like) and fill it with `cutbank copy`: %w", f.dir, errors.ErrUnsupported)
		}
	}
	f.way.wraps.Store(true)
	return nil
}

// refused reports whether err says that the file system has no such call, or
// not between two directories.
func refused(err error) bool {
	for _, no := range []error{syscall.EPERM, syscall.EOPNOTSUPP, syscall.EMLINK, syscall.ENOSYS, syscall.EINVAL, syscall.EXDEV} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// isAt reports whether the draft has got the name although an error said
// otherwise: NFS repeats what was not answered in time, and then finds its own.
func (d *draft) isAt(file string) bool {
	there, info, err := openObject(file)
	for n := 0; n < 5 && errors.Is(err, syscall.ESTALE); n++ {
		// The kernel finds the directory in two places, and cannot bring them
		// together while others rename.
		time.Sleep(10 * time.Millisecond << n)
		there, info, err = openObject(file)
	}
	if err != nil {
		return false
	}
	defer there.Close()
	if !os.SameFile(d.info, info) {
		// Unless the file system numbers its files anew, it is another.
		content := d.path
		if d.dir {
			content = filepath.Join(d.path, contentName)
		}
		if _, err := os.Lstat(content); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	got, err := io.ReadAll(io.LimitReader(there, int64(len(d.bytes))+1))
	return err == nil && bytes.Equal(got, d.bytes)
}

// isObject reports whether there is an object at file, or anything but a
// directory.
func isObject(file string) bool {
	info, err := os.Lstat(file)
	if err != nil || !info.IsDir() {
		return err == nil
	}
	_, err = os.Lstat(filepath.Join(file, contentName))
	return err == nil
}

// vacated removes an empty directory, which a Remove has left that was
// interrupted, and reports whether it did.
func vacated(file string) bool { return unix.Rmdir(file) == nil }

func taken(file string) error { return &fs.PathError{Op: "put", Path: file, Err: fs.ErrExist} }

// await waits until what has the name can be seen. Callers that are told that it
// is taken read what is there, and a cache may still say that there is nothing.
func (f *Folder) await(ctx context.Context, file string) error {
	for waited, wait := time.Duration(0), 10*time.Millisecond; waited < f.kind.lag; waited, wait = waited+wait, min(2*wait, time.Second) {
		if _, err := os.Lstat(file); err == nil {
			break
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
	return nil
}

// busyTries are how often a file is asked for that somebody has open, which SMB
// servers do not let be moved or removed; about three seconds.
const busyTries = 8

// patiently calls do until no other has what it needs open.
func patiently(ctx context.Context, do func() error) error {
	for n, wait := 1, 25*time.Millisecond; ; n, wait = n+1, 2*wait {
		err := do()
		if !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ETXTBSY) || n == busyTries {
			return err
		}
		if perr := pause(ctx, wait); perr != nil {
			return errors.Join(perr, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Careless implements backend.Careless: names are looked for first, and then
// taken, where the file system has no better way.
func (f *Folder) Careless() backend.Backend {
	f.way.unenforced.Store(true)
	return f
}
