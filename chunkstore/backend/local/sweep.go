package local

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reserveName is a file in tmp that only takes space, of reserveSize bytes.
	reserveName = "reserve" + tmpMark
	reserveSize = 1 << 20

	// tmpAge is how old a file in tmp is that nobody will finish.
	tmpAge = 24 * time.Hour

	// sweptMark begins the names of directories that are being swept.
	sweptMark = "swept-"
)

// Sweep removes what crashed Puts left in tmp more than a day before now, and
// returns how many that were. It disturbs no Put at work: one that stood still
// for a day fails.
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
		if info.IsDir() {
			err = sweepDir(dir, e.Name())
		} else {
			err = os.Remove(filepath.Join(dir, e.Name()))
		}
		if err == nil {
			n++
		} else if !errors.Is(err, fs.ErrNotExist) {
			return n, err
		}
	}
	return n, nil
}

// sweepDir removes a directory that is to become an object. It is taken away
// first: who still moved it to its name would publish what is not there.
func sweepDir(dir, name string) error {
	swept := name
	if !strings.HasPrefix(name, sweptMark) {
		swept = sweptMark + name
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, swept)); err != nil {
			return err
		}
	}
	swept = filepath.Join(dir, swept)
	if err := unix.Unlink(filepath.Join(swept, contentName)); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "remove", Path: swept, Err: err}
	}
	return os.Remove(swept)
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
	tmp, _, err := f.write(p)
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
