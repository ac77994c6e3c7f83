package snapshotter

import (
	"context"
	"iter"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// racy is how close to the start of the previous snapshot a time may be for the
// file to count as changed: a file system's clock ticks, and times are rounded.
const racy = 2 * time.Second

// prevDir is a directory of the previous snapshot.
type prevDir struct{ entries, witness chunk.ID }

// prevItem is one name of it.
type prevItem struct {
	e *tree.Entry
	w tree.Witness // zero if it is not known
}

// openPrev finds the previous snapshot's root. Trouble with it costs time, not
// the snapshot.
func (u *run) openPrev(ctx context.Context, parent, rec *repo.Snapshot) *prevDir {
	if parent == nil {
		return nil
	}
	get := u.getPage(ctx)
	var p prevDir
	for e, err := range tree.Entries(get, parent.Tree.ID) {
		if err != nil {
			u.opt.Logf("previous snapshot %s: %v: all files are read again", parent.ID, err)
			return nil
		}
		p.entries = e.Root
	}
	for w, err := range tree.Witnesses(get, parent.Witness.ID) {
		if err != nil {
			u.opt.Logf("previous snapshot %s: %v: all files are read again", parent.ID, err)
			return nil
		}
		p.witness = w.Root
	}
	id := parent.ID
	rec.Parent = &id
	u.prevTime = tree.TimeOf(parent.When().Add(-racy))
	return &p
}

func (u *run) getPage(ctx context.Context) tree.Get {
	return func(id chunk.ID) ([]byte, error) { return u.page(ctx, id) }
}

// prevReader walks a previous directory in step with the live one.
type prevReader struct {
	next  func() (*tree.Entry, error, bool)
	stop  func()
	wnext func() (*tree.Witness, error, bool)
	wstop func()
	e     *tree.Entry
	w     *tree.Witness
}

func (u *run) readPrev(ctx context.Context, p *prevDir) *prevReader {
	if p == nil {
		return nil
	}
	r := &prevReader{}
	r.next, r.stop = iter.Pull2(tree.Entries(u.getPage(ctx), p.entries))
	r.wnext, r.wstop = iter.Pull2(tree.Witnesses(u.getPage(ctx), p.witness))
	return r
}

func (r *prevReader) close() {
	if r != nil {
		r.stop()
		r.wstop()
	}
}

// find returns the previous item of that name; names come in ascending order.
// Damage reads as an end.
func (r *prevReader) find(name string) *prevItem {
	if r == nil {
		return nil
	}
	for r.e == nil || r.e.Name < name {
		e, err, ok := r.next()
		if !ok || err != nil {
			return nil
		}
		r.e = e
	}
	if r.e.Name != name {
		return nil
	}
	it := &prevItem{e: r.e}
	for r.w == nil || r.w.Name < name {
		w, err, ok := r.wnext()
		if !ok || err != nil {
			return it
		}
		r.w = w
	}
	if r.w.Name == name {
		it.w = *r.w
	}
	return it
}

// same reports whether the node is what it was, by what the file system says.
// The device's number does not count where ctime has nanoseconds: it changes
// when a disk is mounted again, and no other file has the same inode, size and
// both times.
func (u *run) same(a *tree.Attr, p *prevItem) bool {
	if p == nil || p.w.Ino == 0 || p.e.Kind != a.Kind || p.w.Ino != a.Ino || p.w.Ctime != a.Ctime {
		return false
	}
	if p.w.Dev != a.Dev && a.Ctime.Nsec == 0 {
		return false
	}
	if p.e.Mtime != a.Mtime || a.Kind == tree.File && p.e.Size != a.Size || p.e.Changed {
		return false
	}
	return a.Mtime.Compare(u.prevTime) < 0 && a.Ctime.Compare(u.prevTime) < 0
}

// takeOver copies what is stored of an unchanged node, if all of it can still
// be leaned on.
func (u *run) takeOver(ctx context.Context, e *tree.Entry, p *prevItem) bool {
	known := func(id chunk.ID) bool {
		ok, err := u.w.Known(id)
		return ok && err == nil
	}
	if p.e.LostXattrs || !p.e.XattrPage.IsZero() && !known(p.e.XattrPage) {
		return false
	}
	if e.Kind == tree.File {
		get := func(id chunk.ID) ([]byte, error) {
			if !known(id) {
				return nil, chunk.ErrMissing
			}
			p, err := u.page(ctx, id)
			if err == nil {
				u.local.keep(id, p) // nothing else puts it again
			}
			return p, err
		}
		for x, err := range tree.Recipe(get, p.e) {
			if err != nil || x.Kind == tree.Absent || x.Kind == tree.Lost || x.Kind == tree.Data && !known(x.ID) {
				return false
			}
		}
		e.Extents, e.Recipe = p.e.Extents, p.e.Recipe
		e.Holes, e.Allocated = p.e.Holes, p.e.Allocated
	}
	e.Xattrs, e.XattrPage = p.e.Xattrs, p.e.XattrPage
	return true
}
