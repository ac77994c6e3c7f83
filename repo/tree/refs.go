package tree

import (
	"encoding/binary"
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// References calls page for every page that a page refers to, and data for
// every data chunk, as often as they are referred to. It looks at nothing else,
// so it is several times faster than ParsePage and allocates nothing. It finds
// all that ParsePage would find; of a page that ParsePage refuses it may find a
// part before it returns chunk.ErrCorrupt or ErrVersion, or find no fault.
func References(p []byte, page, data func(chunk.ID)) error {
	if len(p) < 4 || len(p) > maxPage {
		return errPage
	}
	if p[0] != pageVersion {
		return fmt.Errorf("page of version %d: %w", p[0], ErrVersion)
	}
	kind, level := PageKind(p[1]), int(p[2])
	if kind < DirPage || kind > XattrPage {
		return fmt.Errorf("page of kind %d: %w", kind, ErrVersion)
	}
	count, n := binary.Uvarint(p[3:])
	if n <= 0 || level > maxLevel || count == 0 || count > uint64(len(p)) {
		return errPage
	}
	r := refScanner{page: page, data: data}
	item := r.entry
	switch {
	case level > 0:
		item = r.ref
	case kind == RecipePage:
		item = r.extent
	case kind == WitnessPage:
		item = r.witness
	case kind == XattrPage:
		return nil
	}
	p = p[3+n:]
	for range count {
		l, n := binary.Uvarint(p)
		if n <= 0 || l > uint64(len(p)-n) {
			return errPage
		}
		if err := item(p[n : n+int(l)]); err != nil {
			return err
		}
		p = p[n+int(l):]
	}
	if len(p) != 0 {
		return errPage
	}
	return nil
}

type refScanner struct{ page, data func(chunk.ID) }

// child passes on the ID of a page.
func (r *refScanner) child(f *field) error {
	var id chunk.ID
	if !f.id(&id) {
		return errPage
	}
	if !id.IsZero() {
		r.page(id)
	}
	return nil
}

func (r *refScanner) ref(p []byte) error {
	found := false
	for len(p) > 0 {
		f, rest, err := nextField(p)
		if err == nil && f.num == 1 {
			found = true
			err = r.child(&f)
		}
		if err != nil {
			return err
		}
		p = rest
	}
	if !found {
		return errPage
	}
	return nil
}

func (r *refScanner) witness(p []byte) error {
	for len(p) > 0 {
		f, rest, err := nextField(p)
		if err == nil && f.num == 6 {
			err = r.child(&f)
		}
		if err != nil {
			return err
		}
		p = rest
	}
	return nil
}

func (r *refScanner) entry(p []byte) error {
	for len(p) > 0 {
		f, rest, err := nextField(p)
		if err == nil {
			switch f.num {
			case 16, 18, 20:
				err = r.child(&f)
			case 17:
				err = r.extent(f.bytes)
			}
		}
		if err != nil {
			return err
		}
		p = rest
	}
	return nil
}

func (r *refScanner) extent(p []byte) error {
	x, rest, err := parseExtent(p)
	if err == nil && len(rest) > 0 {
		err = errPage
	}
	if err == nil && x.Kind == Data {
		r.data(x.ID)
	}
	return err
}
