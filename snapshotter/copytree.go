package snapshotter

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

type pageID = chunk.ID

// copySource is where a tree is copied from.
type copySource struct {
	src     *repo.Repo
	page    tree.Get
	memo    *memo
	members map[string]member // nil where nobody asks
	depth   int               // of the directory that is being walked
}

// copied is a list of the source and what it became: of the snapshot that is near
// the one being copied. Zero IDs know nothing.
type copied struct{ old, copy pageID }

// copyJob is a file to be cut anew.
type copyJob struct {
	from      tree.Entry  // of the source
	old, copy *tree.Entry // nil; or an earlier state of the file, and what it became
	item      *memoItem
}

// pairs walks a list of the source and its copy in step with a third one, in the
// order of names.
type pairs[T any] struct {
	name       func(*T) string
	next, also func() (*T, error, bool)
	stops      []func()
	old, copy  *T
	end        bool
}

func newPairs[T any](name func(*T) string, old, copy iter.Seq2[*T, error]) *pairs[T] {
	p := &pairs[T]{name: name}
	var stop, stopAlso func()
	p.next, stop = iter.Pull2(old)
	p.also, stopAlso = iter.Pull2(copy)
	p.stops = []func(){stop, stopAlso}
	return p
}

func (p *pairs[T]) close() {
	if p != nil {
		for _, stop := range p.stops {
			stop()
		}
	}
}

// find returns what the old list has under a name, and what it became; nil for
// nothing. Names come in ascending order. Damage reads as an end.
func (p *pairs[T]) find(name string) (old, copy *T) {
	if p == nil {
		return nil, nil
	}
	for !p.end && (p.old == nil || p.name(p.old) < name) {
		x, err, ok := p.next()
		y, yerr, yok := p.also()
		if !ok || !yok || err != nil || yerr != nil || p.name(x) != p.name(y) {
			p.end, p.old = true, nil
			break
		}
		p.old, p.copy = x, y
	}
	if p.old == nil || p.name(p.old) != name {
		return nil, nil
	}
	return p.old, p.copy
}

// maxDepth bounds the directories that lie one in the other: what a hostile tree
// can make a copier stack up.
const maxDepth = 1 << 15

var errDeep = fmt.Errorf("directories lie deeper than %d in each other: %w", maxDepth, chunk.ErrCorrupt)

func entryName(e *tree.Entry) string     { return e.Name }
func witnessName(w *tree.Witness) string { return w.Name }

// copyDir copies the entries of a directory. The list that a record's tree is, of
// one entry, is one too.
func (u *run) copyDir(ctx context.Context, d *dirJob, root pageID, path string, near copied) error {
	defer d.close()
	if u.from.depth++; u.from.depth > maxDepth {
		return errDeep
	}
	defer func() { u.from.depth-- }()
	var ps *pairs[tree.Entry]
	if !near.old.IsZero() && !near.copy.IsZero() {
		ps = newPairs(entryName, tree.Entries(u.from.page, near.old), tree.Entries(u.getPage(ctx), near.copy))
		defer ps.close()
	}
	for e, err := range tree.Entries(u.from.page, root) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("directory %q: %w", "/"+path, err)
		}
		if err := d.throttle(ctx); err != nil {
			return err
		}
		at := ""
		if d.parent != nil {
			at = join(path, e.Name)
		}
		old, copy := ps.find(e.Name)
		if old != nil && (old.Kind != e.Kind || copy.Kind != e.Kind) {
			old, copy = nil, nil
		}
		if err := u.copyEntry(ctx, d, e, at, old, copy); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (u *run) copyEntry(ctx context.Context, d *dirJob, e *tree.Entry, path string, old, copy *tree.Entry) error {
	s := &slot{e: *e}
	d.add(s)
	if err := u.copyXattrs(s, old, copy); err != nil {
		return fmt.Errorf("extended attributes of %q: %w", "/"+path, err)
	}
	switch e.Kind {
	case tree.Dir:
		if u.from.members != nil && d.parent != nil && d.parent.parent == nil {
			u.from.members[e.Name] = member{e.Root, s}
		}
		if e.Root.IsZero() || old != nil && old.Root == e.Root && copy.Children == e.Children && copy.Below == e.Below {
			if !e.Root.IsZero() {
				s.e.Root = copy.Root
			}
			u.p.Dirs.Add(1 + e.Below.Dirs)
			u.p.Files.Add(e.Below.Files)
			u.p.Bytes.Add(e.Below.Bytes)
			break
		}
		sub := newDirJob(d, s, u)
		sub.ww = nil
		var near copied
		if old != nil {
			near = copied{old.Root, copy.Root}
		}
		return u.copyDir(ctx, sub, e.Root, path, near)
	case tree.File:
		u.p.Files.Add(1)
		if e.Size == 0 || old != nil && sameContents(e, old) && copy.Size == e.Size {
			if e.Size > 0 {
				setContents(&s.e, copy)
			}
			u.p.Bytes.Add(uint64(e.Size))
			break
		}
		j := &job{d: d, s: s, path: path, copy: &copyJob{from: *e, old: old, copy: copy}}
		if !u.from.memo.ask(j) {
			return nil
		}
		return u.send(ctx, j)
	}
	d.done(s)
	return nil
}

// setContents makes e's contents those of another entry of the same repository.
func setContents(e, of *tree.Entry) {
	e.Size, e.Extents, e.Recipe, e.Holes, e.Allocated = of.Size, of.Extents, of.Recipe, of.Holes, of.Allocated
}

// copyXattrs copies the page of extended attributes, if there is one.
func (u *run) copyXattrs(s *slot, old, copy *tree.Entry) (err error) {
	switch {
	case s.e.XattrPage.IsZero():
	case old != nil && old.XattrPage == s.e.XattrPage:
		s.e.XattrPage = copy.XattrPage
	default:
		var p []byte
		if p, err = u.from.page(s.e.XattrPage); err == nil {
			s.e.XattrPage, err = u.putPage(p)
		}
	}
	return err
}

// copyWitness copies a witness.
func (u *run) copyWitness(ctx context.Context, root pageID, near copied) (pageID, error) {
	switch {
	case root.IsZero():
		return root, ctx.Err()
	case root == near.old && !near.copy.IsZero():
		return near.copy, ctx.Err()
	}
	if u.from.depth++; u.from.depth > maxDepth {
		return pageID{}, errDeep
	}
	defer func() { u.from.depth-- }()
	var ps *pairs[tree.Witness]
	if !near.old.IsZero() && !near.copy.IsZero() {
		ps = newPairs(witnessName, tree.Witnesses(u.from.page, near.old), tree.Witnesses(u.getPage(ctx), near.copy))
		defer ps.close()
	}
	ww := tree.NewWitnessWriter(u.putPage)
	for x, err := range tree.Witnesses(u.from.page, root) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return pageID{}, err
		}
		w := *x
		if !w.Root.IsZero() {
			var below copied
			if old, copy := ps.find(w.Name); old != nil {
				below = copied{old.Root, copy.Root}
			}
			if w.Root, err = u.copyWitness(ctx, w.Root, below); err != nil {
				return pageID{}, err
			}
		}
		if err := ww.Add(&w); err != nil {
			return pageID{}, err
		}
	}
	return ww.Finish()
}

// member is a directory below the root of a cluster snapshot.
type member struct {
	was  pageID
	slot *slot
}

// setMembers sets the trees of a cluster snapshot's members, each of which is a
// directory below the root. Where the original's record says another, it is none.
func (f *copySource) setMembers(rec *repo.Snapshot) {
	for i := range rec.Members {
		m := &rec.Members[i]
		if d, ok := f.members[m.Name]; ok && d.was == m.Tree.ID {
			m.Tree.ID = d.slot.e.Root
		} else {
			m.Tree.ID = pageID{}
		}
	}
}

// memo remembers what recipes of the source became: names of one file, and
// files that were moved or are there several times, are read once. It is safe for
// concurrent use.
type memo struct {
	mu sync.Mutex
	m  map[[32]byte]*memoItem
}

type memoItem struct {
	done    bool
	e       tree.Entry // its contents alone
	waiting []*job
}

// maxMemo bounds how many are remembered, of about 300 bytes each.
const maxMemo = 64 << 10

func newMemo() *memo { return &memo{m: map[[32]byte]*memoItem{}} }

// contentKey names what a file of the source holds.
func contentKey(e *tree.Entry) [32]byte {
	if !e.Recipe.IsZero() {
		return e.Recipe
	}
	var p []byte
	for _, x := range e.Extents {
		p = append(p, byte(x.Kind), byte(x.End))
		p = binary.LittleEndian.AppendUint64(p, uint64(x.Len))
		p = append(p, x.ID[:]...)
	}
	return chunk.Digest(p)
}

// ask reports whether the caller must cut the file. If not, its slot is known, or
// will be when another has cut it.
func (m *memo) ask(j *job) bool {
	key := contentKey(&j.copy.from)
	m.mu.Lock()
	x := m.m[key]
	switch {
	case x == nil:
		j.copy.item = &memoItem{}
		if len(m.m) >= maxMemo {
			m.shrink()
		}
		m.m[key] = j.copy.item
	case !x.done:
		x.waiting = append(x.waiting, j)
	}
	known := x != nil && x.done
	m.mu.Unlock()
	if known {
		j.fill(&x.e)
	}
	return x == nil
}

// shrink forgets about half of what nobody waits for. The caller has mu.
func (m *memo) shrink() {
	for key, x := range m.m {
		if x.done {
			delete(m.m, key)
		}
		if len(m.m) <= maxMemo/2 {
			break
		}
	}
}

// settle makes known what a file became.
func (m *memo) settle(j *job) {
	x := j.copy.item
	m.mu.Lock()
	setContents(&x.e, &j.s.e)
	x.done = true
	waiting := x.waiting
	x.waiting = nil
	m.mu.Unlock()
	for _, w := range waiting {
		w.fill(&x.e)
	}
}

// fill makes a job's slot known.
func (j *job) fill(of *tree.Entry) {
	setContents(&j.s.e, of)
	j.d.u.p.Bytes.Add(uint64(of.Size))
	j.d.done(j.s)
}
