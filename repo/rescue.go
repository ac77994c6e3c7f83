package repo

import (
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// Donor is a place that may still have what a repository has lost. Nothing that
// it gives is trusted: only bytes of which the hash is a lost ID are taken.
type Donor struct {
	Name string // for people

	// Get returns a chunk or a page by its ID; any error means that it cannot.
	// Nil if the donor knows no IDs: those of two repositories are equal only if
	// they share their secrets.
	Get func(ctx context.Context, kind pack.Kind, id chunk.ID) ([]byte, error)

	// Files yields files that may hold, at the same places or shifted, what a
	// file of a snapshot held. Key tells files apart: one of which nothing came
	// is not read as a whole again. Nil if there are none.
	Files func(ctx context.Context, s *Snapshot, path string) iter.Seq2[string, tree.Node]
}

// rescue looks for what is lost at the donors, until nothing more is found: what
// is below a page is known only when the page is back.
func (p *repairer) rescue(ctx context.Context, snaps []*Snapshot) (*losses, error) {
	w := p.newScan()
	if err := w.run(ctx, snaps); err != nil {
		return nil, err
	}
	cut := map[string]struct{}{}
	for w.lost.count() > 0 && len(p.opt.Donors) > 0 {
		pages, err := p.byID(ctx, w.lost)
		if err != nil {
			return nil, err
		}
		if w.lost.count() > 0 && pages == 0 {
			if pages, err = p.byContent(ctx, w, cut); err != nil {
				return nil, err
			}
		}
		if pages == 0 {
			break
		}
		clear(cut) // more may be known to be lost now
		if err := w.run(ctx, w.lost.hurt); err != nil {
			return nil, err
		}
	}
	if err := w.run(ctx, w.lost.hurt); err != nil {
		return nil, err
	}
	return w.lost, p.flush(ctx)
}

// byID asks the donors that know IDs, and returns how many pages came back.
func (p *repairer) byID(ctx context.Context, lost *losses) (pages int, err error) {
	byBytes := func(a, b chunk.ID) int { return slices.Compare(a[:], b[:]) }
	for _, d := range p.opt.Donors {
		if d.Get == nil {
			continue
		}
		for _, id := range slices.SortedFunc(maps.Keys(lost.pages), byBytes) {
			if b, err := d.Get(ctx, pack.Meta, id); err == nil {
				ok, err := p.take(ctx, lost, d.Name, pack.Meta, b)
				if err != nil {
					return pages, err
				}
				if ok {
					pages++
				}
			}
		}
		for _, id := range slices.SortedFunc(maps.Keys(lost.chunks), byBytes) {
			if b, err := d.Get(ctx, pack.Data, id); err == nil {
				if _, err := p.take(ctx, lost, d.Name, pack.Data, b); err != nil {
					return pages, err
				}
			}
		}
		if ctx.Err() != nil {
			return pages, ctx.Err()
		}
	}
	return pages, nil
}

// take stores bytes if they are lost ones, and reports whether they are.
func (p *repairer) take(ctx context.Context, lost *losses, from string, kind pack.Kind, b []byte) (bool, error) {
	id := p.r.hasher(kind).Sum(b)
	_, chunk := lost.chunks[id]
	_, page := lost.pages[id]
	if kind == pack.Data && !chunk || kind == pack.Meta && !page {
		return false, nil
	}
	if _, err := p.put(ctx, kind, id, b); err != nil {
		return false, err
	}
	if kind == pack.Meta {
		delete(lost.pages, id)
		p.pages[id] = slices.Clone(b)
	} else {
		delete(lost.chunks, id)
		p.back[id] = struct{}{}
	}
	p.res.Found++
	p.report(RepairStep{Do: RepairFound, Chunk: id, From: from, Bytes: uint64(len(b))})
	return true, nil
}

// byContent looks into the files of donors: for each file of which something is
// lost at the lost places, and if that does not help, cut anew as a whole. It
// returns how many pages of recipes came back.
func (p *repairer) byContent(ctx context.Context, w *lossScan, cut map[string]struct{}) (pages int, err error) {
	before := len(w.lost.pages)
	cutter, err := chunk.NewCutter(p.r.cfg.Params())
	if err != nil {
		return 0, err
	}
	w.file = func(ctx context.Context, s *Snapshot, path string, e *tree.Entry) error {
		for _, d := range p.opt.Donors {
			if d.Files == nil {
				continue
			}
			for key, n := range d.Files(ctx, s, path) {
				if n.Attr().Kind != tree.File {
					continue
				}
				left, lens, err := p.ranges(ctx, w.lost, d.Name, e, n)
				if err != nil || left == 0 {
					return err
				}
				key = d.Name + "\x00" + key
				if _, did := cut[key]; did {
					continue
				}
				cut[key] = struct{}{}
				if err := p.cutAnew(ctx, w.lost, d.Name, cutter, n, lens); err != nil {
					return err
				}
			}
		}
		return ctx.Err()
	}
	err = w.run(ctx, w.lost.hurt)
	w.file = nil
	return before - len(w.lost.pages), err
}

// ranges reads what is lost of a file at the same places of another, and
// returns how much of it stays lost, pages counting as one, and the lengths of
// chunks among that.
func (p *repairer) ranges(ctx context.Context, lost *losses, from string, e *tree.Entry, n tree.Node) (left int, lens []int64, err error) {
	get := func(id chunk.ID) ([]byte, error) {
		_, b, err := p.page(ctx, id, tree.RecipePage)
		return b, err
	}
	for x, err := range tree.Recipe(get, e) {
		if err != nil {
			if !gone(err) {
				return left, lens, err
			}
			return left + 1, lens, nil // pages of the recipe are lost
		}
		if _, ok := lost.chunks[x.ID]; !ok || x.Kind != tree.Data {
			continue
		}
		ok, err := p.rangeOf(ctx, lost, from, n, x.Off, x.Len)
		if err != nil {
			return left, lens, err
		}
		if !ok {
			left++
			if !slices.Contains(lens, x.Len) {
				lens = append(lens, x.Len)
			}
		}
	}
	return left, lens, nil
}

// rangeOf takes a range of a file, if it is a lost chunk.
func (p *repairer) rangeOf(ctx context.Context, lost *losses, from string, n tree.Node, off, length int64) (bool, error) {
	if off < 0 || off+length > n.Attr().Size || length > chunk.MaxSize {
		return false, nil
	}
	b := make([]byte, length)
	if m, err := n.ReadAt(ctx, b, off); int64(m) < length && err != nil {
		return false, ctx.Err() // what cannot be read is not there
	}
	return p.take(ctx, lost, from, pack.Data, b)
}

// errUnread ends the cutting of a file that cannot be read to its end.
var errUnread = errors.New("cannot be read")

// maxLens is for how many lengths of lost chunks a file is searched at its cuts.
const maxLens = 16

// cutAnew cuts a file as a snapshot would, and takes the chunks and the pages of
// its recipe that are lost. A chunk next to a change has one end only where the
// file is cut now; lens are the lengths of such to try. That a file cannot be
// read is no error.
func (p *repairer) cutAnew(ctx context.Context, lost *losses, from string, c *chunk.Cutter, n tree.Node, lens []int64) error {
	var cuts []int64
	rw := tree.NewRecipeWriter(func(b []byte) (chunk.ID, error) {
		_, err := p.take(ctx, lost, from, pack.Meta, b)
		return p.r.k.Tree.Sum(b), err
	})
	size := n.Attr().Size
	err := sections(ctx, n, func(r io.ReaderAt, off, length int64, hole bool) error {
		if hole {
			end := tree.EndSource
			if off+length == size {
				end = tree.EndFile
			}
			return rw.Add(tree.Extent{Len: length, Kind: tree.Hole, End: end})
		}
		c.Reset(io.NewSectionReader(r, off, length))
		for {
			piece, err := c.Next()
			if err == io.EOF {
				return ctx.Err()
			}
			if err != nil {
				return errUnread
			}
			x := tree.Extent{Len: piece.Len, Kind: tree.Zero, End: tree.End(piece.End)}
			if piece.End == chunk.EndFile && rw.Size()+piece.Len < size {
				x.End = tree.EndSource
			}
			if !piece.Zero {
				x.Kind, x.ID = tree.Data, p.r.k.Data.Sum(piece.Data)
				if _, err := p.take(ctx, lost, from, pack.Data, piece.Data); err != nil {
					return err
				}
			}
			if err := rw.Add(x); err != nil {
				return err
			}
			cuts = append(cuts, rw.Size())
		}
	})
	if errors.Is(err, errUnread) && ctx.Err() == nil {
		return nil
	}
	if err != nil {
		return err
	}
	if err := rw.Finish(&tree.Entry{}); err != nil {
		return err
	}
	for _, l := range lens[:min(len(lens), maxLens)] {
		for _, at := range cuts {
			for _, off := range []int64{at - l, at} {
				if _, err := p.rangeOf(ctx, lost, from, n, off, l); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// sections calls do for the holes of a file, and for what lies between them.
func sections(ctx context.Context, n tree.Node, do func(r io.ReaderAt, off, length int64, hole bool) error) error {
	size := n.Attr().Size
	var r io.ReaderAt = nodeReader{ctx, n}
	extents := func(yield func(tree.Extent, error) bool) { yield(tree.Extent{Len: size, Kind: tree.Data}, nil) }
	if o, ok := n.(tree.Opener); ok {
		f, err := o.Open(ctx)
		if err != nil {
			return errUnread
		}
		defer f.Close()
		r, extents = f, f.Extents(0)
	} else if x, ok := n.(tree.Extenter); ok {
		extents = x.Extents(ctx, 0)
	}
	start, end := int64(0), int64(0) // of the section that is open
	flush := func() error {
		if end > start {
			return do(r, start, end-start, false)
		}
		return nil
	}
	for x, err := range extents {
		if err != nil || x.Kind == tree.Lost || x.Kind == tree.Absent {
			return errUnread
		}
		if x.Off >= size {
			break
		}
		x.Len = min(x.Len, size-x.Off)
		if x.Kind != tree.Hole {
			if end == start {
				start = x.Off
			}
			end = x.Off + x.Len
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		if err := do(r, x.Off, x.Len, true); err != nil {
			return err
		}
		start, end = x.Off+x.Len, x.Off+x.Len
	}
	return flush()
}

type nodeReader struct {
	ctx context.Context
	n   tree.Node
}

func (r nodeReader) ReadAt(p []byte, off int64) (int, error) { return r.n.ReadAt(r.ctx, p, off) }
