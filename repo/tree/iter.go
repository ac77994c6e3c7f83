package tree

import (
	"fmt"
	"iter"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// Get returns a page's bytes, which are not changed.
type Get func(id chunk.ID) ([]byte, error)

// leaves calls do for every leaf of a list, in order; false ends the walk.
func leaves(get Get, id chunk.ID, kind PageKind, level int, do func(*Page) bool) (bool, error) {
	p, err := get(id)
	if err != nil {
		return false, err
	}
	pg, err := ParsePage(p)
	if err != nil {
		return false, fmt.Errorf("page %s: %w", id, err)
	}
	if pg.Kind != kind || level >= 0 && pg.Level != level {
		return false, fmt.Errorf("page %s is of kind %d, level %d where kind %d, level %d should be: %w", id, pg.Kind, pg.Level, kind, level, chunk.ErrCorrupt)
	}
	if pg.Level == 0 {
		return do(pg), nil
	}
	for _, r := range pg.Refs {
		if more, err := leaves(get, r.ID, kind, pg.Level-1, do); !more || err != nil {
			return false, err
		}
	}
	return true, nil
}

// list yields the items of a list; a zero root is an empty one. An error ends
// it.
func list[T any](get Get, root chunk.ID, kind PageKind, items func(*Page) []T) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		if root.IsZero() {
			return
		}
		_, err := leaves(get, root, kind, -1, func(pg *Page) bool {
			xs := items(pg)
			for i := range xs {
				if !yield(&xs[i], nil) {
					return false
				}
			}
			return true
		})
		if err != nil {
			yield(nil, err)
		}
	}
}

// Entries yields a stored directory's entries.
func Entries(get Get, root chunk.ID) iter.Seq2[*Entry, error] {
	return list(get, root, DirPage, func(p *Page) []Entry { return p.Entries })
}

// Witnesses yields a stored witness's items.
func Witnesses(get Get, root chunk.ID) iter.Seq2[*Witness, error] {
	return list(get, root, WitnessPage, func(p *Page) []Witness { return p.Witness })
}

// Recipe yields a stored file's extents.
func Recipe(get Get, e *Entry) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if e.Recipe.IsZero() {
			for _, x := range e.Extents {
				if !yield(x, nil) {
					return
				}
			}
			return
		}
		off := int64(0)
		for x, err := range list(get, e.Recipe, RecipePage, func(p *Page) []Extent { return p.Extents }) {
			if err != nil {
				yield(Extent{}, err)
				return
			}
			y := *x
			y.Off = off
			if off += y.Len; !yield(y, nil) {
				return
			}
		}
	}
}
