package diskcache

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// queueBytes is how much may wait to be written; what comes on top is not kept.
const queueBytes = 16 << 20

// Key names a stored frame: its pack, and its offset there.
type Key struct {
	Pack [16]byte
	Off  uint32
}

func (k Key) folder() int {
	h := fnv.New32a()
	h.Write(k.Pack[:])
	h.Write([]byte{byte(k.Off), byte(k.Off >> 8), byte(k.Off >> 16), byte(k.Off >> 24)})
	return int(h.Sum32() % folders)
}

func (k Key) file() string { return fmt.Sprintf("%s-%08x", hex.EncodeToString(k.Pack[:]), k.Off) }

// Cache is one directory of frames. It is safe for concurrent use.
type Cache struct {
	dir   string
	limit int64

	mu     sync.Mutex
	queue  []entry
	queued map[Key]struct{}
	bytes  int64 // of queue, and of what is being written
	busy   bool  // a goroutine writes
	closed bool
	idle   sync.WaitGroup
}

type entry struct {
	key Key
	p   []byte
}

// Open returns the cache in dir, which is made when something is put, and holds
// at most limit bytes. Close it.
func Open(dir string, limit int64) *Cache {
	return &Cache{dir: dir, limit: limit, queued: map[Key]struct{}{}}
}

func (c *Cache) path(k Key) string { return filepath.Join(c.dir, folderName(k.folder()), k.file()) }

// Get returns the frame if it is here and has n bytes, else nil. The slice is the
// caller's. Whether it is the frame is to be proven; Drop it if not.
func (c *Cache) Get(k Key, n int64) []byte {
	path := c.path(k)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	if fi.Size() != n {
		c.Drop(k) // what a power cut has left
		return nil
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(f, p); err != nil {
		c.Drop(k)
		return nil
	}
	// Where the time cannot be set it is evicted sooner.
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}, unix.AT_SYMLINK_NOFOLLOW)
	return p
}

// Has reports whether a frame of n bytes is here.
func (c *Cache) Has(k Key, n int64) bool {
	fi, err := os.Lstat(c.path(k))
	return err == nil && fi.Size() == n
}

// Drop removes a frame that has turned out to be none.
func (c *Cache) Drop(k Key) { os.Remove(c.path(k)) }

// Put keeps a frame, if there is room for it and time: it returns at once, and
// writes in the background. It keeps p, which must not be changed any more.
func (c *Cache) Put(k Key, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, again := c.queued[k]
	if again || c.closed || len(p) == 0 || c.bytes+int64(len(p)) > queueBytes || charge(int64(len(p))) > c.limit {
		return
	}
	c.queued[k] = struct{}{}
	c.queue = append(c.queue, entry{k, p})
	c.bytes += int64(len(p))
	if !c.busy {
		c.busy = true
		c.idle.Add(1)
		go c.work()
	}
}

// work writes until nothing waits any more.
func (c *Cache) work() {
	defer c.idle.Done()
	for {
		c.mu.Lock()
		batch := c.queue
		c.queue = nil
		if len(batch) == 0 {
			c.busy = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for part := range batches(batch, c.limit) {
			c.write(part)
		}
		c.mu.Lock()
		for _, e := range batch {
			delete(c.queued, e.key)
			c.bytes -= int64(len(e.p))
		}
		c.mu.Unlock()
	}
}

// batches yields parts of all that are small beside the limit, for what a batch
// has is evicted together.
func batches(all []entry, limit int64) func(yield func([]entry) bool) {
	return func(yield func([]entry) bool) {
		from, sum := 0, int64(0)
		for i, e := range all {
			n := charge(int64(len(e.p)))
			if i > from && (sum+n > limit/16 || i-from == 64) {
				if !yield(all[from:i]) {
					return
				}
				from, sum = i, 0
			}
			sum += n
		}
		if from < len(all) {
			yield(all[from:])
		}
	}
}

// Close waits until what was put is written. Nothing is kept afterwards.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.idle.Wait()
}

// write writes frames. What fails is only not kept.
func (c *Cache) write(batch []entry) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return
	}
	st, err := lockState(c.dir)
	if err != nil {
		return
	}
	defer st.close()
	var due []entry
	need := int64(0)
	for _, e := range batch {
		if !c.Has(e.key, int64(len(e.p))) {
			due = append(due, e)
			need += charge(int64(len(e.p)))
		}
	}
	if need == 0 || !spare(c.dir, need) || !st.makeRoom(c.limit-need) {
		return
	}
	for _, e := range due {
		st.held[e.key.folder()] += uint64(charge(int64(len(e.p))))
	}
	if st.save() != nil {
		return
	}
	for i, e := range due {
		if err := c.writeOne(e); err != nil {
			for _, e := range due[i:] {
				st.held[e.key.folder()] -= uint64(charge(int64(len(e.p))))
			}
			_ = st.save() // too large a number does no harm
			return
		}
	}
}

// writeOne writes a frame beside its name. The caller has the lock, so what is
// there under the temporary name is of who was killed; it is removed and not
// written over, lest it be of who lost the lock with the file.
func (c *Cache) writeOne(e entry) error {
	path := c.path(e.key)
	tmp := filepath.Join(filepath.Dir(path), tempName)
	create := func() (*os.File, error) {
		return os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	}
	f, err := create()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err = os.Mkdir(filepath.Dir(path), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			f, err = create()
		}
	case errors.Is(err, fs.ErrExist):
		if err = os.Remove(tmp); err == nil {
			f, err = create()
		}
	}
	if err != nil {
		return err
	}
	_, err = f.Write(e.p)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

// spare reports whether the disk has room for n more bytes, and some left.
func spare(dir string, n int64) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	size, free := int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	return free-n >= min(size/20, 1<<30)
}

// Usage returns how many bytes the cache in dir takes; none is none.
func Usage(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var fi fs.FileInfo
			if fi, err = d.Info(); err == nil {
				sum += fi.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // never there, or removed meanwhile
		}
		return err
	})
	return sum, err
}

// Clear removes the cache in dir, whoever uses it, and returns how many bytes it
// had. Who puts frames meanwhile begins anew.
func Clear(dir string) (freed int64, err error) {
	if freed, err = Usage(dir); err != nil {
		return 0, err
	}
	// Again where somebody put a frame into a folder that was just emptied.
	for range 10 {
		if err = os.RemoveAll(dir); err == nil {
			return freed, nil
		}
	}
	return freed, err
}

func folderName(i int) string { return fmt.Sprintf("v1-%02x", i) }

func isFrame(name string) bool {
	return len(name) == 32+1+8 && strings.IndexByte(name, '-') == 32
}
