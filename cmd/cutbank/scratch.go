package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// scratchPrefix begins the names of scratch directories. Beside each lies a file
// NAME.lock, which its process holds locked: who gets that lock has found what a
// process left that is gone.
const scratchPrefix = "cutbank-scratch-"

// scratchDir makes a directory of this process's own for the files of a capture,
// below parent, and removes those that crashed runs of the same user have left
// there. What it returns takes the directory away.
func (a *app) scratchDir(parent string) (string, func(), error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", nil, fmt.Errorf("scratch space: %w", err)
	}
	a.clearScratch(parent)
	for i := 0; ; i++ {
		dir := filepath.Join(parent, scratchPrefix+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(i))
		lock, err := lockNew(dir + ".lock")
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("scratch space: %w", err)
		}
		done := func() {
			if err := removeScratch(dir); err != nil {
				a.warnf("scratch space stays behind, and the next run takes it away: %v", err)
			}
			lock.Close()
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			done()
			return "", nil, fmt.Errorf("scratch space: %w", err)
		}
		return dir, done, nil
	}
}

// lockNew makes a file and locks it. Between the two somebody who cleans up may
// have taken it for a leftover and removed it: then it is made again.
func lockNew(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, &fs.PathError{Op: "flock", Path: name, Err: err}
		}
		if sameFile(f, name) {
			return f, nil
		}
		f.Close()
	}
}

func sameFile(f *os.File, name string) bool {
	x, err := f.Stat()
	if err != nil {
		return false
	}
	y, err := os.Lstat(name)
	return err == nil && os.SameFile(x, y)
}

// removeScratch removes a scratch directory, and last the lock that guards it.
func removeScratch(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Remove(dir + ".lock")
}

// clearScratch removes what crashed runs left.
func (a *app) clearScratch(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return // what is wrong shows when the directory is made
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".lock")
		if !ok || !strings.HasPrefix(name, scratchPrefix) || !e.Type().IsRegular() {
			continue
		}
		lock := filepath.Join(parent, e.Name())
		f, err := os.OpenFile(lock, os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // somebody else's, or gone
		}
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil && int(st.Uid) == os.Geteuid() &&
			unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && sameFile(f, lock) {
			a.logf("removing scratch space of a run that was ended: %s", filepath.Join(parent, name))
			if err := removeScratch(filepath.Join(parent, name)); err != nil {
				a.warnf("scratch space of a run that was ended: %v", err)
			}
		}
		f.Close()
	}
}

// localDir is where cutbank keeps what no repository has: below the folder for local
// state, or without one in a directory of the user's own for temporary files.
func (a *app) localDir(sub string) (string, error) {
	dir, err := a.stateDir()
	if err != nil {
		return "", err
	}
	if dir == "" {
		if dir, err = ownTemp(); err != nil {
			return "", err
		}
	}
	dir = filepath.Join(dir, sub)
	return dir, os.MkdirAll(dir, 0o700)
}

// ownTemp is a directory for temporary files that nobody else can have made.
func ownTemp() (string, error) {
	dir := filepath.Join(os.TempDir(), "cutbank-"+strconv.Itoa(os.Geteuid()))
	err := os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return "", fmt.Errorf("%s belongs to somebody else, or others may write there: set TMPDIR or --cache-dir", quote(dir))
	}
	return dir, nil
}
