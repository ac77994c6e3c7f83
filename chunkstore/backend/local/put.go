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
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	tmpName = "tmp" // where files are written
	tmpMark = "~"   // ends their names; no object's name has it
)

// Put implements backend.Backend. A full disk or an exhausted quota is an error
// that names the folder and wraps syscall.ENOSPC or syscall.EDQUOT.
func (f *Folder) Put(ctx context.Context, name string, p []byte) error {
	file, err := f.file(ctx, "put", name)
	if err != nil {
		return err
	}
	if err := f.put(ctx, name, file, p); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fmt.Errorf("%s is full: free some space there and run the command again: %w", f.dir, err)
		}
		return err
	}
	return nil
}

func (f *Folder) put(ctx context.Context, name, file string, p []byte) error {
	if isObject(file) {
		// Only to save the writing; publish decides.
		return taken(file)
	}
	if err := f.durableDir(filepath.Dir(file)); err != nil {
		return err
	}
	tmp, info, err := f.write(p)
	if err != nil {
		return err
	}
	d := &draft{path: tmp, info: info, bytes: p}
	if err = ctx.Err(); err == nil {
		err = f.publish(ctx, name, d, file)
	}
	// After a rename there is nothing to remove. Whatever else keeps the file
	// here, Sweep will get it.
	d.remove()
	if err != nil {
		return err
	}
	if err = syncDir(filepath.Dir(file)); err == nil {
		return nil
	}
	// A second sync would tell nothing: the kernel reports an error once. What
	// is not durable must not be found by who looks whether it is there.
	_ = f.remove(file)
	return err
}

// durableDir makes a directory below the folder, and lets its entry and those
// above it, up to the folder, reach the disk. It does so once for each even
// where the directory exists: who made it may not have come so far.
func (f *Folder) durableDir(dir string) error {
	if dir == f.dir {
		return f.here()
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
// its path and what it is. After an error there is none.
func (f *Folder) write(p []byte) (string, fs.FileInfo, error) {
	var random [12]byte
	rand.Read(random[:])
	tmp := filepath.Join(f.dir, tmpName, fmt.Sprintf("%d-%s%s", os.Getpid(), hex.EncodeToString(random[:]), tmpMark))
	fd, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := f.here(); err != nil {
			return "", nil, err
		}
		if err = os.Mkdir(filepath.Dir(tmp), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			f.own(filepath.Dir(tmp))
			fd, err = os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		}
	}
	if err != nil {
		return "", nil, err
	}
	f.own(tmp)
	if _, err = fd.Write(p); err == nil {
		err = fd.Sync()
	}
	info, serr := fd.Stat()
	if err = errors.Join(err, serr, fd.Close()); err != nil {
		os.Remove(tmp)
		return "", nil, err
	}
	return tmp, info, nil
}
