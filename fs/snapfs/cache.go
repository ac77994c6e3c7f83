package snapfs

import (
	"container/list"
	"context"
	"fmt"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// Chunks is where the bytes come from: chunkstore.Store fills it. What it
// returns is proven, shared and not to be changed.
type Chunks interface {
	Page(ctx context.Context, id chunk.ID) ([]byte, error)
	Data(ctx context.Context, id chunk.ID) ([]byte, error)
	Prefetch(ids []chunk.ID)
}

// Distant is what Chunks may be besides: far away, so that Prefetch is worth so many
// bytes in front of who reads in order, and not a few megabytes; 0: it is not so.
type Distant interface {
	Ahead() int64
}

// page is a decoded page with running sums: starts[i] and items[i] count what
// comes before item i.
type page struct {
	*tree.Page
	starts []uint64 // nodes of a directory, bytes of a recipe
	items  []uint64 // leaf items; nil for leaves
	total  uint64
	cost   int // half kilobytes of memory, about
}

func newPage(p *tree.Page) (*page, error) {
	pg := &page{Page: p}
	add := func(v uint64) error {
		pg.starts = append(pg.starts, pg.total)
		if pg.total += v; pg.total >= 1<<62 {
			return fmt.Errorf("page whose counts overflow: %w", chunk.ErrCorrupt)
		}
		return nil
	}
	items := uint64(0)
	for i := range p.Refs {
		v := p.Refs[i].Below.Nodes
		if p.Kind == tree.RecipePage {
			v = p.Refs[i].Below.Bytes
		}
		if err := add(v); err != nil {
			return nil, err
		}
		pg.items = append(pg.items, items)
		if items += p.Refs[i].Items; items >= 1<<62 {
			return nil, fmt.Errorf("page whose counts overflow: %w", chunk.ErrCorrupt)
		}
	}
	for i := range p.Entries {
		if err := add(p.Entries[i].Below.Nodes + 1); err != nil {
			return nil, err
		}
	}
	for i := range p.Extents {
		if err := add(uint64(p.Extents[i].Len)); err != nil {
			return nil, err
		}
	}
	return pg, nil
}

// Cache keeps decoded pages, least recently used ones go first. It is safe for
// concurrent use.
type Cache struct {
	c     Chunks
	ahead int64 // of Distant

	mu   sync.Mutex
	cost int // of all pages kept
	byID map[chunk.ID]*list.Element
	lru  *list.List
}

type cachedPage struct {
	id   chunk.ID
	page *page
}

// costLimit is how many half kilobytes of decoded pages are kept: an item takes
// one, or more if it is long.
const costLimit = 48 << 10

// NewCache returns a Cache over c.
func NewCache(c Chunks) *Cache {
	ahead := int64(0)
	if d, ok := c.(Distant); ok {
		ahead = d.Ahead()
	}
	return &Cache{c: c, ahead: ahead, byID: map[chunk.ID]*list.Element{}, lru: list.New()}
}

// below returns the page that a reference promises.
func (c *Cache) below(ctx context.Context, parent *page, i int) (*page, error) {
	r := &parent.Refs[i]
	pg, err := c.page(ctx, r.ID, parent.Kind, parent.Level-1)
	if err != nil {
		return nil, err
	}
	want := r.Below.Nodes
	if parent.Kind == tree.RecipePage {
		want = r.Below.Bytes
	}
	return pg, pg.promised(r.ID, want, r.Items)
}

// promised checks the counts of a page against those of who refers to it: by
// them nodes and bytes are found.
func (pg *page) promised(id chunk.ID, total, items uint64) error {
	n := uint64(len(pg.starts))
	if l := len(pg.items); l > 0 {
		n = pg.items[l-1] + pg.Refs[l-1].Items
	}
	if pg.total != total || n != items {
		return fmt.Errorf("page %s holds %d items and %d below, not %d and %d: %w", id, n, pg.total, items, total, chunk.ErrCorrupt)
	}
	return nil
}

// page returns the page of that ID, which must be of that kind and level;
// level -1: any, for roots.
func (c *Cache) page(ctx context.Context, id chunk.ID, kind tree.PageKind, level int) (*page, error) {
	c.mu.Lock()
	el := c.byID[id]
	if el != nil {
		c.lru.MoveToFront(el)
	}
	c.mu.Unlock()
	var pg *page
	if el != nil {
		pg = el.Value.(*cachedPage).page
	} else {
		b, err := c.c.Page(ctx, id)
		if err != nil {
			return nil, err
		}
		p, err := tree.ParsePage(b)
		if err != nil {
			return nil, fmt.Errorf("page %s: %w", id, err)
		}
		if pg, err = newPage(p); err != nil {
			return nil, fmt.Errorf("page %s: %w", id, err)
		}
		pg.cost = max(len(pg.starts), 1+len(b)/512)
		c.add(id, pg)
	}
	if pg.Kind != kind || level >= 0 && pg.Level != level {
		return nil, fmt.Errorf("page %s is of kind %d, level %d where kind %d, level %d should be: %w", id, pg.Kind, pg.Level, kind, level, chunk.ErrCorrupt)
	}
	return pg, nil
}

func (c *Cache) add(id chunk.ID, pg *page) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID[id] != nil {
		return
	}
	c.byID[id] = c.lru.PushFront(&cachedPage{id, pg})
	for c.cost += pg.cost; c.cost > costLimit && c.lru.Len() > 1; {
		el := c.lru.Back()
		old := c.lru.Remove(el).(*cachedPage)
		c.cost -= old.page.cost
		delete(c.byID, old.id)
	}
}
