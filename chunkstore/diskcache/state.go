package diskcache

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	folders   = 256
	stateName = "v1-state"
	tempName  = "tmp"
	stateSize = folders*8 + 2
	block     = 4096 // what a file takes is counted in
	sample    = 64   // frames that are looked at to evict half of them
)

// charge is what a file of n bytes counts as.
func charge(n int64) int64 { return (n + block - 1) / block * block }

// state is the locked file that says what the folders hold.
type state struct {
	dir  string
	f    *os.File
	held [folders]uint64 // bytes, at most
	hand int             // the folder where eviction goes on
}

// errBusy says that another process has the lock for long.
var errBusy = errors.New("another process holds the cache's lock")

// lockState locks and reads the state. It waits no longer than 50 ms: a process
// that is stopped may hold it for ever.
func lockState(dir string) (*state, error) {
	for range 50 {
		st, err := tryLock(dir)
		if st != nil || err != nil {
			return st, err
		}
		time.Sleep(time.Millisecond)
	}
	return nil, errBusy
}

func tryLock(dir string) (*state, error) {
	path := filepath.Join(dir, stateName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		f.Close()
		return nil, nil
	}
	st := &state{dir: dir, f: f}
	if err == nil {
		err = st.read(path)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, errReplaced) {
			return nil, nil
		}
		return nil, err
	}
	return st, nil
}

// errReplaced says that the file was deleted before it was locked: others may
// lock another one.
var errReplaced = errors.New("the file is not there any more")

func (st *state) read(path string) error {
	mine, err := st.f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Lstat(path)
	if err != nil || !os.SameFile(mine, there) {
		return errReplaced
	}
	var p [stateSize]byte
	n, _ := st.f.ReadAt(p[:], 0)
	if mine.Size() != stateSize || n != stateSize {
		for i := range st.held {
			st.count(i, nil)
		}
		return nil
	}
	for i := range st.held {
		// A damaged number must not overflow the sum: so little is evicted too soon.
		st.held[i] = min(binary.LittleEndian.Uint64(p[i*8:]), 1<<50)
	}
	st.hand = int(binary.LittleEndian.Uint16(p[folders*8:])) % folders
	return nil
}

func (st *state) save() error {
	p := make([]byte, 0, stateSize)
	for _, n := range st.held {
		p = binary.LittleEndian.AppendUint64(p, n)
	}
	p = binary.LittleEndian.AppendUint16(p, uint16(st.hand))
	_, err := st.f.WriteAt(p, 0)
	return err
}

// close gives the lock back.
func (st *state) close() { st.f.Close() }

func (st *state) sum() (n int64) {
	for _, h := range st.held {
		n += int64(h)
	}
	return n
}

// frameFile is a file of a folder.
type frameFile struct {
	folder int
	name   string
	bytes  int64
	mtime  time.Time
}

// count looks what a folder holds, and appends that to found. What was left by
// who was killed it removes.
func (st *state) count(i int, found []frameFile) []frameFile {
	folder := filepath.Join(st.dir, folderName(i))
	list, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return found // it counts as before
	}
	st.held[i] = 0
	for _, e := range list {
		fi, err := e.Info()
		if err != nil {
			continue // gone
		}
		if !isFrame(e.Name()) {
			if os.Remove(filepath.Join(folder, e.Name())) == nil {
				continue
			}
		}
		n := charge(fi.Size())
		st.held[i] += uint64(n)
		found = append(found, frameFile{i, e.Name(), n, fi.ModTime()})
	}
	return found
}

// makeRoom evicts frames until the sum is at most most, and reports whether it
// is. A round that frees nothing ends it.
func (st *state) makeRoom(most int64) bool {
	for looked := 0; st.sum() > most; {
		if looked >= 2*folders {
			return false // files that cannot be removed
		}
		var found []frameFile
		for seen := 0; len(found) < sample && seen < folders; seen++ {
			found = st.count(st.hand, found)
			st.hand = (st.hand + 1) % folders
			looked++
		}
		slices.SortFunc(found, func(a, b frameFile) int { return a.mtime.Compare(b.mtime) })
		for _, f := range found[:(len(found)+1)/2] {
			if st.sum() <= most {
				break
			}
			if os.Remove(filepath.Join(st.dir, folderName(f.folder), f.name)) == nil {
				st.held[f.folder] -= uint64(f.bytes)
				looked = 0
			}
		}
	}
	return true
}
