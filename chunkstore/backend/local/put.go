package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tmpName = "tmp" // where files are written
	tmpMark = "~"   // ends their names; no object's name has it

	// reserveName is a file in tmp that only takes space, of reserveSize bytes.
	reserveName = "reserve" + tmpMark
	reserveSize = 1 << 20

	// tmpAge is how old a file in tmp is that nobody will finish.
	tmpAge = 24 * time.Hour
)

// Put implements backend.Backend. A full disk or an exhausted quota is an error
// that names the folder and wraps syscall.ENOSPC or syscall.EDQUOT.
func (f *Folder) Put(ctx context.Context, name string, p []byte) error {
	file, err := f.file(ctx, "put", name)
	if err != nil {
		return err
	}
	if err := f.put(ctx, file, p); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fmt.Errorf("%s is full: free some space there and run the command again: %w", f.dir, err)
		}
		return err
	}
	return nil
}

func (f *Folder) put(ctx context.Context, file string, p []byte) error {
	if _, err := os.Lstat(file); err == nil {
		// Only to save the writing; link decides.
		return &fs.PathError{Op: "put", Path: file, Err: fs.ErrExist}
	}
	if err := f.durableDir(filepath.Dir(file)); err != nil {
		return err
	}
	tmp, err := f.write(p)
	if err != nil {
		return err
	}
	if err = ctx.Err(); err == nil {
		err = f.publish(tmp, file)
	}
	// After a rename there is nothing to remove. Whatever else keeps the file
	// here, Sweep will get it.
	os.Remove(tmp)
	if err != nil {
		return err
	}
	if err = syncDir(filepath.Dir(file)); err == nil {
		return nil
	}
	// A second sync would tell nothing: the kernel reports an error once. What
	// is not durable must not be found by who looks whether it is there.
	os.Remove(file)
	return err
}

// durableDir makes a directory below the folder, and lets its entry and those
// above it, up to the folder, reach the disk. It does so once for each even
// where the directory exists: who made it may not have come so far.
func (f *Folder) durableDir(dir string) error {
	if dir == f.dir {
		return nil
	}
	if _, ok := f.synced.Load(dir); ok {
		return nil
	}
	if err := f.durableDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err == nil {
		f.own(dir)
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	f.synced.Store(dir, nil)
	return nil
}

// own gives what root made here to the folder's owner: one snapshot made as
// root shall not keep the others out. Where it fails, it is as without it.
func (f *Folder) own(path string) {
	var st unix.Stat_t
	if os.Geteuid() == 0 && unix.Stat(f.dir, &st) == nil && (st.Uid != 0 || st.Gid != 0) {
		_ = os.Lchown(path, int(st.Uid), int(st.Gid))
	}
}

// write makes a temporary file of p, on the disk when it returns, and returns
// its path. After an error there is none.
func (f *Folder) write(p []byte) (string, error) {
	var random [12]byte
	rand.Read(random[:])
	tmp := filepath.Join(f.dir, tmpName, fmt.Sprintf("%d-%s%s", os.Getpid(), hex.EncodeToString(random[:]), tmpMark))
	fd, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.Mkdir(filepath.Dir(tmp), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			f.own(filepath.Dir(tmp))
			fd, err = os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		}
	}
	if err != nil {
		return "", err
	}
	f.own(tmp)
	if _, err = fd.Write(p); err == nil {
		err = fd.Sync()
	}
	if err = errors.Join(err, fd.Close()); err != nil {
		os.Remove(tmp)
		return "", err
	}
	return tmp, nil
}

// publish gives tmp its final name unless that is taken.
func (f *Folder) publish(tmp, file string) error {
	err := f.move(tmp, file)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody tidied up empty directories.
		f.synced.Clear()
		if err := f.durableDir(filepath.Dir(file)); err != nil {
			return err
		}
		err = f.move(tmp, file)
	}
	if errors.Is(err, fs.ErrExist) {
		// NFS may repeat a link whose answer was lost, and then find its own.
		var st unix.Stat_t
		if unix.Stat(tmp, &st) == nil && st.Nlink == 2 {
			return nil
		}
		return &fs.PathError{Op: "put", Path: file, Err: fs.ErrExist}
	}
	return err
}

// move links, or where the file system has no links, renames.
func (f *Folder) move(tmp, file string) error {
	if !f.noLink.Load() {
		if err := f.link(tmp, file); !refused(err) {
			return err
		}
		f.noLink.Store(true)
	}
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, file, unix.RENAME_NOREPLACE)
	switch {
	case err == unix.EINVAL, refused(err):
		return fmt.Errorf("the file system of %s has neither hard links nor a rename that spares what is there, and can hold no repository: use another: %w", f.dir, err)
	case err != nil:
		return &fs.PathError{Op: "put", Path: file, Err: err}
	}
	return nil
}

// refused reports whether err says that the file system has no such call.
func refused(err error) bool {
	for _, no := range []error{syscall.EPERM, syscall.EOPNOTSUPP, syscall.EMLINK, syscall.ENOSYS} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// Sweep removes what crashed Puts left in tmp more than a day before now, and
// returns how many files that were. It disturbs no Put at work.
func (f *Folder) Sweep(now time.Time) (int, error) {
	dir := filepath.Join(f.dir, tmpName)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), tmpMark) || e.Name() == reserveName || now.Sub(info.ModTime()) < tmpAge {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err == nil {
			n++
		} else if !errors.Is(err, fs.ErrNotExist) {
			return n, err
		}
	}
	return n, nil
}

// Reserve takes a little space, which Release gives back when the disk is full:
// who wants to remove something has to write down first what. Space that is
// reserved already is left so.
func (f *Folder) Reserve() error {
	file := filepath.Join(f.dir, tmpName, reserveName)
	if _, err := os.Lstat(file); err == nil {
		return nil
	}
	if err := f.durableDir(filepath.Dir(file)); err != nil {
		return err
	}
	p := make([]byte, reserveSize) // that no file system can compress
	if _, err := rand.Read(p); err != nil {
		return err
	}
	tmp, err := f.write(p)
	if err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// Release gives back what Reserve took, and reports whether there was anything.
func (f *Folder) Release() (bool, error) {
	err := os.Remove(filepath.Join(f.dir, tmpName, reserveName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
