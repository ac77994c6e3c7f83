package index

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// generation is one closed generation of the cache, open for reading. It is
// safe for concurrent use while it is held.
type generation struct {
	path   string
	number uint64
	lock   *os.File // flock, shared
	meta   *meta
	chunks *tables
	packs  *tables
	users  atomic.Int32
}

// openGeneration opens the generation at path and holds it once. A generation
// that was removed is fs.ErrNotExist; one that is damaged chunk.ErrCorrupt.
func openGeneration(path string, number uint64, repo string) (_ *generation, err error) {
	g := &generation{path: path, number: number}
	g.users.Store(1)
	if g.lock, err = os.Open(filepath.Join(path, lockName)); err != nil {
		return nil, damagedIfThere(path, err)
	}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if err = flock(g.lock, unix.LOCK_SH); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) { // somebody is removing it
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		return nil, err
	}
	if !g.inPlace() { // it was removed before the lock was there
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	p, err := os.ReadFile(filepath.Join(path, metaName))
	if err != nil {
		return nil, damagedIfThere(path, err)
	}
	if g.meta, err = parseMeta(p); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if g.meta.repo != repo {
		return nil, fmt.Errorf("%s: belongs to repository %q, not to %q: %w", path, g.meta.repo, repo, chunk.ErrCorrupt)
	}
	if g.chunks, err = openTables(path, "c", g.meta.chunks); err != nil {
		return nil, damagedIfThere(path, err)
	}
	if g.packs, err = openTables(path, "p", g.meta.packs); err != nil {
		return nil, damagedIfThere(path, err)
	}
	return g, nil
}

// damagedIfThere tells a missing file of a generation from a generation that
// is missing as a whole.
func damagedIfThere(path string, err error) error {
	if _, e := os.Stat(path); e == nil && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%v: %w", err, chunk.ErrCorrupt)
	}
	return err
}

// inPlace reports whether the generation is still in the cache.
func (g *generation) inPlace() bool {
	mine, err := g.lock.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(filepath.Join(g.path, lockName))
	return err == nil && os.SameFile(mine, there)
}

// hold keeps the generation open until release was called once more. The
// caller holds it already.
func (g *generation) hold() *generation {
	g.users.Add(1)
	return g
}

func (g *generation) release() {
	if g.users.Add(-1) == 0 {
		g.close()
	}
}

func (g *generation) close() {
	if g.chunks != nil {
		g.chunks.close()
	}
	if g.packs != nil {
		g.packs.close()
	}
	g.lock.Close()
}

// find returns the number of a pack.
func (g *generation) find(name pack.Name) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(g.meta.names, name, compareNames)
	return uint32(i), ok
}

// lookup appends the locations of a chunk to dst, but those in dead packs.
func (g *generation) lookup(id *chunk.ID, dst []pack.Location, dead map[uint32]struct{}) ([]pack.Location, error) {
	err := g.chunks.get(id[:], func(v []byte) {
		for ; len(v) >= locationSize; v = v[locationSize:] {
			p := getPlace(v)
			if int64(p.pack) >= int64(len(g.meta.names)) {
				continue // no writer writes it
			}
			if _, gone := dead[p.pack]; !gone {
				dst = append(dst, p.location(g.meta.names[p.pack]))
			}
		}
	})
	return dst, err
}

// pack returns what is known of a pack.
func (g *generation) pack(name pack.Name) (p chunkstore.PackInfo, ok bool, err error) {
	n, in := g.find(name)
	if !in {
		return p, false, nil
	}
	err = g.packs.get(name[:], func(v []byte) { p, ok = parseRecord(v) })
	p.Listing = g.meta.listing(n)
	if err == nil && !ok {
		err = fmt.Errorf("pack %s has no record: %w", name, chunk.ErrCorrupt)
	}
	return p, ok, err
}

// writer returns who listed a pack, zero if it does not hold the pack.
func (g *generation) writer(name pack.Name) (w [16]byte, err error) {
	err = g.packs.get(name[:], func(v []byte) {
		if len(v) >= recordFixed {
			copy(w[:], v[recordWriter:])
		}
	})
	return w, err
}

// bytes returns how many bytes its tables take.
func (g *generation) bytes() int64 {
	var n int64
	for _, t := range slices.Concat(g.meta.chunks, g.meta.packs) {
		n += t.size
	}
	return n
}
