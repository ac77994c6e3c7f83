package index

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// sameListing reports whether two listings tell the same of a pack. They may
// differ in the chunks alone, too: a writer could list what others lean on, and
// later something else in its place.
func sameListing(a, b *chunkstore.PackInfo) bool {
	return a.Writer == b.Writer && a.Session == b.Session && a.Size == b.Size &&
		a.Kind == b.Kind && a.Epoch == b.Epoch && bytes.Equal(a.Wrapped, b.Wrapped) &&
		(a.Listing == b.Listing || a.Listing == [16]byte{} || b.Listing == [16]byte{})
}

func infoOf(t *pack.Trailer) chunkstore.PackInfo {
	return chunkstore.PackInfo{Header: t.Header, Size: t.Size, Listing: ListingOf(t)}
}

// ListingOf is what PackInfo.Listing says of a signed trailer: a hash of the
// signature, which fits nothing else.
func ListingOf(t *pack.Trailer) [16]byte {
	d := chunk.Digest(t.Signature)
	return [16]byte(d[:16])
}

// ours reports whether a writer is the owner or oneself: those do not lie.
func (db *DB) ours(writer [16]byte) bool {
	w := seal.WriterID(writer)
	return w == db.keys.Owner() || w == db.keys.Self()
}

// info returns what is known of a pack. The caller has mu.
func (db *DB) info(name pack.Name) (p chunkstore.PackInfo, ok bool, err error) {
	if _, gone := db.dropped[name]; gone {
		return p, false, nil
	}
	if slot, in := db.mem.slots[name]; in {
		return db.mem.packs[slot].info, true, nil
	}
	if db.inGeneration(name) {
		return db.gen.pack(name)
	}
	return p, false, nil
}

// inGeneration reports whether the generation holds the pack, and nothing newer
// contradicts it. The caller has mu.
func (db *DB) inGeneration(name pack.Name) bool {
	if db.gen == nil {
		return false
	}
	n, ok := db.gen.find(name)
	if !ok {
		return false
	}
	_, dead := db.dead[n]
	return !dead
}

// insert makes a pack known and reports whether it was not, or otherwise.
// Where two listings of one pack disagree the pack itself decides: proven says
// that t is what it says. The caller has mu.
func (db *DB) insert(t *pack.Trailer, published, proven bool) bool {
	if _, gone := db.dropped[t.Name]; gone {
		return false
	}
	p := memPack{name: t.Name, info: infoOf(t), published: published}
	known, ok, err := db.info(t.Name)
	if err != nil {
		return false // who reads that record will find the damage, and all is read again
	}
	if ok {
		if sameListing(&known, &p.info) {
			if slot, in := db.mem.slots[t.Name]; in && published {
				db.mem.publish(slot)
			}
			return false
		}
		if proven {
			db.proven[t.Name] = struct{}{}
		} else if !db.overrules(t.Name, known.Writer, t.Writer) {
			return false
		}
		db.hide(t.Name)
	}
	// The trailer may point into the segment it came from; keep the key only.
	p.info.Wrapped = slices.Clone(t.Wrapped)
	slot := db.mem.addPack(p)
	t.Locations(func(id chunk.ID, l pack.Location) { db.mem.add(&id, placeOf(slot, &l)) })
	return true
}

// overrules reports whether a listing counts more than the different one that
// is known. Where neither writer is above doubt the known one stays until
// settle has asked the pack. The caller has mu.
func (db *DB) overrules(name pack.Name, known, other [16]byte) bool {
	if _, ok := db.proven[name]; ok {
		return false
	}
	if ours := db.ours(other); ours != db.ours(known) {
		return ours
	}
	db.disputed[name] = other
	return false
}

// hide makes a pack unknown, and reports whether it was known. The caller has
// mu.
func (db *DB) hide(name pack.Name) (known bool) {
	if slot, ok := db.mem.slots[name]; ok {
		db.mem.hide(slot)
		known = true
	}
	if db.inGeneration(name) {
		n, _ := db.gen.find(name)
		db.bury(n)
		known = true
	}
	return known
}

// bury makes a pack of the generation unknown. The caller has mu.
func (db *DB) bury(number uint32) {
	if db.dead == nil {
		db.dead = map[uint32]struct{}{}
	}
	db.dead[number] = struct{}{}
}

// settle decides what was listed in several ways, by what the packs say of
// themselves. Of a pack that is gone, or does not prove itself, what is known
// stays. Until all is decided no generation is built, for it would claim to
// hold what its segments list; what a backend's error kept from being decided
// is tried again by the next Sync.
func (db *DB) settle(ctx context.Context) error {
	db.mu.RLock()
	disputed := maps.Clone(db.disputed)
	db.mu.RUnlock()
	if len(disputed) == 0 {
		return nil
	}
	names := slices.SortedFunc(maps.Keys(disputed), compareNames)
	there, err := db.find(ctx, names)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, name := range names {
		g.Go(func() error {
			size, ok := there[name]
			if !ok {
				db.decide(name, disputed[name], nil)
				return nil
			}
			t, err := db.readPack(ctx, name, size)
			switch {
			case err == nil, isGone(err):
			case undecidable(err):
				db.opt.Logf("pack %s is listed in two ways, the other one is writer %s's, and it does not prove itself: %v", name, seal.WriterID(disputed[name]), err)
			default:
				return err
			}
			db.decide(name, disputed[name], t)
			return nil
		})
	}
	return g.Wait()
}

// undecidable reports whether a pack will never tell what it lists.
func undecidable(err error) bool {
	return errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, seal.ErrNoKey) || errors.Is(err, seal.ErrVersion)
}

// decide ends a dispute: t is what the pack says of itself, nil if nothing.
func (db *DB) decide(name pack.Name, other [16]byte, t *pack.Trailer) {
	db.mu.Lock()
	delete(db.disputed, name)
	known, ok, _ := db.info(name)
	changed := false
	if t != nil && !db.closed {
		// Which of the segments lists it thus is not known any more; some do.
		changed = db.insert(t, true, true)
		db.proven[name] = struct{}{}
	}
	db.mu.Unlock()
	if changed {
		db.news.Add(1)
	}
	if t != nil && ok {
		liar := known.Writer
		if liar == t.Writer {
			liar = other
		}
		db.opt.Logf("pack %s: writer %s has listed it falsely, it is writer %s's", name, seal.WriterID(liar), seal.WriterID(t.Writer))
	}
}

// fewPacks is up to how many packs are looked for one by one.
const fewPacks = 8

// find returns the sizes of those packs that are there.
func (db *DB) find(ctx context.Context, names []pack.Name) (map[pack.Name]int64, error) {
	for wait := time.Duration(0); ; wait = db.lag() {
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		found := map[pack.Name]int64{}
		if len(names) > fewPacks {
			there, err := db.listPacks(ctx, "packs/")
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				if info, ok := there[name]; ok {
					found[name] = info.Size
				}
			}
		} else {
			for _, name := range names {
				there, err := db.listPacks(ctx, name.Object())
				if err != nil {
					return nil, err
				}
				if info, ok := there[name]; ok {
					found[name] = info.Size
				}
			}
		}
		if len(found) == len(names) || wait == db.lag() {
			return found, nil
		}
	}
}

// readPack reads and proves what a pack says of itself.
func (db *DB) readPack(ctx context.Context, name pack.Name, size int64) (*pack.Trailer, error) {
	return pack.ReadTrailer(db.keys, name, size, func(off, n int64) ([]byte, error) {
		p, err := db.backend.Get(ctx, name.Object(), off, n)
		if err == nil && int64(len(p)) != n {
			err = io.ErrUnexpectedEOF
		}
		return p, err
	})
}

// order puts the locations of a chunk into the order in which to try them: ours
// first, then the first one of each other writer, then the second ones. So
// nobody can hide a chunk behind a thousand claims to have it. The caller has
// mu.
func (db *DB) order(locs []pack.Location) {
	writers := make([][16]byte, len(locs))
	ranks := make([]int, len(locs))
	for i := range locs {
		writers[i] = db.writerOf(locs[i].Pack)
		if db.ours(writers[i]) {
			continue
		}
		ranks[i] = 1
		for j := range i {
			if writers[j] == writers[i] {
				ranks[i] = ranks[j] + 1
			}
		}
	}
	// Insertion keeps the order of equals; there are a few only.
	for i := range locs {
		for j := i; j > 0 && ranks[j] < ranks[j-1]; j-- {
			ranks[j], ranks[j-1] = ranks[j-1], ranks[j]
			locs[j], locs[j-1] = locs[j-1], locs[j]
		}
	}
}

// writerOf returns who listed a pack; zero if it is not known. The caller has
// mu.
func (db *DB) writerOf(name pack.Name) (w [16]byte) {
	if slot, ok := db.mem.slots[name]; ok {
		return db.mem.packs[slot].info.Writer
	}
	if db.gen != nil {
		w, _ = db.gen.writer(name) // who reads the record will find the damage
	}
	return w
}
