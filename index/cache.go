package index

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

const (
	subdir           = "index"
	generationPrefix = "v1-" // programs of other versions leave it alone
	tempPrefix       = "tmp-"
	lockName         = "lock"
	metaName         = "meta"
	builderName      = "builder"
)

// errNoRoom says that the cache would grow beyond its limit.
var errNoRoom = errors.New("the index cache is at its size limit")

// cache is the directory that generations lie in. An empty path is no cache.
type cache struct{ dir string }

func (c cache) path(number uint64) string {
	return filepath.Join(c.dir, fmt.Sprintf("%s%020d", generationPrefix, number))
}

func generationNumber(name string) (uint64, bool) {
	s, ok := strings.CutPrefix(name, generationPrefix)
	n, err := strconv.ParseUint(s, 10, 64)
	return n, ok && err == nil && len(s) == 20
}

// numbers lists the generations, newest first. No directory is none.
func (c cache) numbers() ([]uint64, error) {
	if c.dir == "" {
		return nil, nil
	}
	all, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var ns []uint64
	for _, e := range all {
		if n, ok := generationNumber(e.Name()); ok {
			ns = append(ns, n)
		}
	}
	slices.SortFunc(ns, func(a, b uint64) int { return cmp.Compare(b, a) })
	return ns, err
}

// newest opens the newest generation that opens, setting damaged ones aside.
// If that is have, it returns have itself; if there is none, nil.
func (c cache) newest(repo string, have *generation, logf func(string, ...any)) *generation {
	ns, err := c.numbers()
	if err != nil {
		logf("index cache: %v; going on without what it holds", err)
	}
	for _, n := range ns {
		if have != nil && have.number == n && have.inPlace() {
			return have
		}
		g, err := openGeneration(c.path(n), n, repo)
		switch {
		case err == nil:
			return g
		case errors.Is(err, chunk.ErrCorrupt):
			logf("index cache: %v; setting it aside, it will be built again", err)
			c.discard(c.path(n))
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
		default:
			logf("index cache: %v; going on without it", err)
		}
	}
	return nil
}

// discard removes a generation, held or not: who has it open keeps its files,
// for they are unlinked and never truncated. It is moved away first so that
// nobody sees half of it.
func (c cache) discard(path string) {
	away, err := os.MkdirTemp(c.dir, tempPrefix)
	if err != nil {
		return // then nothing in here can be removed
	}
	// Where it fails, another process was faster, or the builder will sweep.
	os.Rename(path, filepath.Join(away, filepath.Base(path)))
	os.RemoveAll(away)
}

// sweep removes what kills have left, and what removeOld removes. The caller
// holds the builder's lock.
func (c cache) sweep(keep uint64) {
	// Where the directory cannot be read, nothing in it can be removed.
	all, _ := os.ReadDir(c.dir)
	for _, e := range all {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			os.RemoveAll(filepath.Join(c.dir, e.Name()))
		}
	}
	c.removeOld(keep)
}

// removeOld removes the generations before keep that nobody holds.
func (c cache) removeOld(keep uint64) {
	ns, _ := c.numbers()
	for _, n := range ns {
		if n < keep {
			c.removeUnused(c.path(n))
		}
	}
}

// removeUnused removes a generation if nobody holds it.
func (c cache) removeUnused(path string) {
	f, err := os.Open(filepath.Join(path, lockName))
	if err == nil {
		defer f.Close()
		err = flock(f, unix.LOCK_EX)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		c.discard(path)
	}
}

// lockBuilder takes the builder's lock; nil without an error means that
// another process has it. Closing the file gives it back.
func (c cache) lockBuilder() (*os.File, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(c.dir, builderName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	return f, nil
}

// flock locks f without waiting: unix.EWOULDBLOCK if another one has it.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// size returns how many bytes lie below dir; what vanishes meanwhile counts or
// not.
func size(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var fi fs.FileInfo
			if fi, err = d.Info(); err == nil {
				sum += fi.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return sum, err
}

// RepoDir is the cache directory of a repository: what Options.Dir is, where
// Usage and Clear are to find it. repoID is 32 hexadecimal digits.
func RepoDir(cacheDir, repoID string) string { return filepath.Join(cacheDir, repoID) }

// Usage returns how many bytes the index caches below cacheDir take, by the
// name of the repository's directory. Other things in there do not count. No
// cacheDir is no usage.
func Usage(cacheDir string) (map[string]int64, error) {
	all, err := os.ReadDir(cacheDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	used := map[string]int64{}
	for _, e := range all {
		dir := filepath.Join(cacheDir, e.Name(), subdir)
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			continue
		}
		n, err := size(dir)
		if err != nil {
			return used, err
		}
		used[e.Name()] = n
	}
	return used, nil
}

// Clear removes the index cache of a repository, but the generations that
// processes have open, and returns how many bytes it removed. It touches
// nothing else in the repository's directory. While another process writes a
// generation it removes nothing.
func Clear(cacheDir, repoID string) (freed int64, err error) {
	if !filepath.IsLocal(repoID) || repoID != filepath.Base(repoID) || repoID == "." {
		return 0, fmt.Errorf("%q is no repository ID", repoID)
	}
	c := cache{filepath.Join(RepoDir(cacheDir, repoID), subdir)}
	if _, err := os.Stat(c.dir); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	before, err := size(c.dir)
	if err != nil {
		return 0, err
	}
	lock, err := c.lockBuilder()
	if err != nil {
		return 0, err
	}
	if lock == nil {
		return 0, fmt.Errorf("%s: another process is writing to this index cache; try again when it is done", c.dir)
	}
	defer lock.Close()
	c.sweep(^uint64(0))
	after, err := size(c.dir)
	return before - after, err
}
