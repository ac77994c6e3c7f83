package tree

import (
	"encoding/binary"
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// DirWriter writes the pages of one directory. It is for one goroutine at a
// time.
type DirWriter struct {
	list listWriter
	last string
	n    uint64
	buf  []byte
}

// NewDirWriter returns a DirWriter that stores pages by put.
func NewDirWriter(put Put) *DirWriter { return &DirWriter{list: listWriter{kind: DirPage, put: put}} }

// Add appends an entry; names come in ascending order.
func (w *DirWriter) Add(e *Entry) error {
	if err := e.check(); err != nil {
		return err
	}
	if w.n > 0 && e.Name <= w.last {
		return fmt.Errorf("directory entry %q comes after %q", e.Name, w.last)
	}
	w.last, w.n = e.Name, w.n+1
	w.buf = AppendEntry(w.buf[:0], e)
	return w.list.add(0, w.buf, hashName(e.Name), Ref{Last: e.Name, Items: 1, Below: e.Totals()}, pageUnit)
}

// Finish writes what is left and sets dir's Root, Children and Below.
func (w *DirWriter) Finish(dir *Entry) error {
	r, err := w.list.finish()
	dir.Root, dir.Children, dir.Below = r.ID, r.Items, r.Below
	return err
}

// WitnessWriter writes the witness of one directory.
type WitnessWriter struct {
	list listWriter
	buf  []byte
}

// NewWitnessWriter returns a WitnessWriter that stores pages by put.
func NewWitnessWriter(put Put) *WitnessWriter {
	return &WitnessWriter{list: listWriter{kind: WitnessPage, put: put}}
}

// Add appends an item; names come in ascending order.
func (w *WitnessWriter) Add(x *Witness) error {
	w.buf = appendWitness(w.buf[:0], x)
	return w.list.add(0, w.buf, hashName(x.Name), Ref{Last: x.Name, Items: 1}, pageUnit)
}

// Finish writes what is left and returns the ID of the root.
func (w *WitnessWriter) Finish() (chunk.ID, error) {
	r, err := w.list.finish()
	return r.ID, err
}

// RecipeWriter writes the recipe of one file.
type RecipeWriter struct {
	list   listWriter
	inline []Extent
	size   int64
	holes  int64
	buf    []byte
}

// NewRecipeWriter returns a RecipeWriter that stores pages by put.
func NewRecipeWriter(put Put) *RecipeWriter {
	return &RecipeWriter{list: listWriter{kind: RecipePage, put: put}}
}

// Size is the sum of the lengths so far.
func (w *RecipeWriter) Size() int64 { return w.size }

// fineExtent is up to which length a record makes small pages.
const fineExtent = 4 << 10

// Add appends an extent; its Off is ignored.
func (w *RecipeWriter) Add(x Extent) error {
	if x.Len <= 0 {
		return fmt.Errorf("extent of %d bytes", x.Len)
	}
	x.Off = w.size
	w.size += x.Len
	if x.Kind == Hole {
		w.holes += x.Len
	}
	if w.list.levels == nil {
		if len(w.inline) < maxInlineExtents {
			w.inline = append(w.inline, x)
			return nil
		}
		for _, y := range w.inline {
			if err := w.page(y); err != nil {
				return err
			}
		}
		w.inline = nil
	}
	return w.page(x)
}

func (w *RecipeWriter) page(x Extent) error {
	h := mix(uint64(x.Len))
	if x.Kind == Data {
		h = binary.LittleEndian.Uint64(x.ID[:])
	}
	w.buf = appendExtent(w.buf[:0], x)
	unit := uint64(pageUnit)
	if x.End == EndRecord && x.Len <= fineExtent {
		unit = fineUnit
	}
	return w.list.add(0, w.buf, h, Ref{Items: 1, Below: Totals{Bytes: uint64(x.Len)}}, unit)
}

// Finish writes what is left and sets e's Extents or Recipe, and its Size.
func (w *RecipeWriter) Finish(e *Entry) error {
	e.Size, e.Extents, e.Recipe = w.size, w.inline, chunk.ID{}
	e.Holes, e.Allocated = w.holes, roundAllocated(w.size-w.holes)
	if w.list.levels == nil {
		return nil
	}
	r, err := w.list.finish()
	e.Recipe = r.ID
	return err
}

// SetXattrs stores extended attributes, sorted by name, in e or in a page of
// their own. More than a page can hold, 8 MiB, are an error.
func (e *Entry) SetXattrs(xs []Xattr, put Put) error {
	e.Xattrs, e.XattrPage = nil, chunk.ID{}
	size := 0
	for _, x := range xs {
		size += len(x.Name) + len(x.Value) + 6
	}
	if size <= maxInlineXattrs {
		e.Xattrs = xs
		return nil
	}
	page := append(make([]byte, 0, size+16), pageVersion, byte(XattrPage), 0)
	page = binary.AppendUvarint(page, uint64(len(xs)))
	for _, x := range xs {
		item := appendXattr(nil, x)
		page = binary.AppendUvarint(page, uint64(len(item)))
		page = append(page, item...)
	}
	if len(page) > maxPage {
		return fmt.Errorf("%q has %d bytes of extended attributes: 8 MiB is the most that can be stored", e.Name, size)
	}
	id, err := put(page)
	e.XattrPage = id
	return err
}
