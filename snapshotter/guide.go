package snapshotter

import (
	"context"
	"iter"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// guideWindow is how many extents of the previous recipe are looked at to find
// the place again after an insertion or a deletion.
const guideWindow = 32

// guide follows the previous recipe of a file that is being cut. A nil guide
// knows nothing.
type guide struct {
	next  func() (tree.Extent, error, bool)
	stop  func()
	queue []tree.Extent
	delta int64 // where a previous offset stands now, less that offset
}

func (w *worker) newGuide(ctx context.Context, p *prevItem) *guide {
	if p == nil || p.e.Kind != tree.File {
		return nil
	}
	g := &guide{}
	g.next, g.stop = iter.Pull2(tree.Recipe(w.u.getPage(ctx), p.e))
	return g
}

func (g *guide) close() {
	if g != nil {
		g.stop()
	}
}

// fill reads ahead in the previous recipe; damage reads as its end.
func (g *guide) fill() {
	for g.next != nil && len(g.queue) < guideWindow {
		x, err, ok := g.next()
		if !ok || err != nil {
			g.next = nil
			return
		}
		g.queue = append(g.queue, x)
	}
}

// guess tries the chunk that the previous recipe has at this place.
func (g *guide) guess(w *worker, at int64) (p chunk.Piece, id chunk.ID, ok bool, err error) {
	if g == nil {
		return p, id, false, nil
	}
	for {
		g.fill()
		if len(g.queue) == 0 {
			return p, id, false, nil
		}
		if g.queue[0].Off+g.delta >= at {
			break
		}
		g.queue = g.queue[1:]
	}
	x := g.queue[0]
	if x.Off+g.delta != at || x.Kind != tree.Data || x.End != tree.EndSplitter && x.End != tree.EndMax {
		return p, id, false, nil
	}
	p, ok, err = w.cutter.Guess(x.Len, func(data []byte) bool { return w.hash.Sum(data) == x.ID })
	if ok {
		g.queue = g.queue[1:]
	}
	return p, x.ID, ok, err
}

// cut tells the guide what the splitter cut; if the previous recipe has that
// chunk near by, the place is found again.
func (g *guide) cut(at, n int64, id chunk.ID) {
	if g == nil {
		return
	}
	g.fill()
	for i, x := range g.queue {
		if x.ID == id && x.Kind == tree.Data && x.Len == n {
			g.delta = at - x.Off
			g.queue = g.queue[i+1:]
			return
		}
	}
}
