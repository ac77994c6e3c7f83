package diff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// identified is a directory node whose ID covers everything below it that this
// package compares: equal IDs of one repository, equal trees.
type identified interface{ TreeID() chunk.ID }

// Compare yields what must happen to a for it to become b: first the roots,
// then directory by directory in the order of names, a directory before what
// is in it. The roots' own names are not compared.
//
// A node that cannot be read is yielded as an error, beside a Change with its
// Path and the sides known, and the walk goes on; so a path may come twice,
// with what is known to differ and with an error. Of a directory whose list
// ended in an error, names that only the other side has are not reported, as
// nobody knows. When ctx ends, so does the sequence, with the error of ctx.
//
// The sequence can be walked more than once. Memory: the walk's depth, and an
// entry for each file of which not all names were met.
func Compare(ctx context.Context, a, b tree.Node, opt Options) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		w := &walker{ctx: ctx, opt: opt, yield: yield}
		w.links.init()
		w.pair(".", a, b)
	}
}

// walker is one run of Compare. Its methods return false when the walk is over.
type walker struct {
	ctx   context.Context
	opt   Options
	yield func(Change, error) bool
	links linkTable
	bufs  [2][]byte // to compare contents; made when first needed
}

// fail yields an error about a path.
func (w *walker) fail(c Change, err error) bool {
	if ctxErr := w.ctx.Err(); ctxErr != nil {
		w.yield(Change{}, ctxErr)
		return false
	}
	c.Kind, c.Fields = 0, 0
	return w.yield(c, located(c.Path, err))
}

// located gives an error the path in the tree. The bare name that Entries puts
// into the error of a child becomes its path; a full path of a live node stays
// in the message, as it says on which side the trouble is.
func located(path string, err error) error {
	if p, ok := err.(*fs.PathError); ok && !strings.Contains(p.Path, "/") {
		return &fs.PathError{Op: p.Op, Path: path, Err: p.Err}
	}
	return &fs.PathError{Op: "compare", Path: path, Err: err}
}

// pair compares two nodes of one path, and what is below them.
func (w *walker) pair(path string, a, b tree.Node) bool {
	if err := w.ctx.Err(); err != nil {
		w.yield(Change{}, err)
		return false
	}
	c := Change{Path: path, Kind: Modified, A: a, B: b}
	aDir, bDir := a.Attr().Kind == tree.Dir, b.Attr().Kind == tree.Dir
	if a.Attr().Kind != b.Attr().Kind {
		w.links.forget(a.Attr(), b.Attr())
		c.Fields = NodeKind &^ w.opt.Ignore
		if c.Fields != 0 && !w.yield(c, nil) {
			return false
		}
		switch {
		case aDir:
			return w.below(path, a, nil)
		case bDir:
			return w.below(path, nil, b)
		}
		return true
	}
	var errs []error
	c.Fields, errs = w.compare(path, a, b)
	if c.Fields != 0 && !w.yield(c, nil) {
		return false
	}
	for _, err := range errs {
		if !w.fail(c, err) {
			return false
		}
	}
	if !aDir || w.sameTree(a, b) {
		return true
	}
	return w.below(path, a, b)
}

// sameTree reports whether IDs prove that two directories hold the same.
func (w *walker) sameTree(a, b tree.Node) bool {
	if !w.opt.IDsComparable || w.opt.Holes {
		return false
	}
	x, ok := a.(identified)
	if !ok {
		return false
	}
	y, ok := b.(identified)
	return ok && !x.TreeID().IsZero() && x.TreeID() == y.TreeID()
}

// single reports a node that only one side has, and all below it.
func (w *walker) single(path string, a, b tree.Node) bool {
	if err := w.ctx.Err(); err != nil {
		w.yield(Change{}, err)
		return false
	}
	c, n := Change{Path: path, Kind: Added, B: b}, b
	if b == nil {
		c, n = Change{Path: path, Kind: Removed, A: a}, a
	}
	if a != nil {
		w.links.forget(a.Attr(), nil)
	} else {
		w.links.forget(nil, b.Attr())
	}
	if !w.yield(c, nil) {
		return false
	}
	return n.Attr().Kind != tree.Dir || w.below(path, a, b)
}

// below merges the children of two directories, either of which may be nil.
func (w *walker) below(path string, a, b tree.Node) bool {
	x, y := w.list(a), w.list(b)
	defer x.stop()
	defer y.stop()
	x.advance()
	y.advance()
	for x.state != ended || y.state != ended {
		// Errors of a directory itself come before anything else is said.
		for _, s := range []*side{x, y} {
			if s.state == failed {
				if !w.fail(Change{Path: path, A: a, B: b}, s.err) {
					return false
				}
				s.partial = true
				s.advance()
			}
		}
		if x.state == failed || y.state == failed {
			continue
		}
		if !w.step(path, x, y) {
			return false
		}
	}
	return true
}

// step handles the smaller of the two names at which the sides stand.
func (w *walker) step(dir string, x, y *side) bool {
	order := 0
	switch {
	case x.state == ended && y.state == ended:
		return true
	case x.state == ended:
		order = 1
	case y.state == ended:
		order = -1
	default:
		order = strings.Compare(x.name, y.name)
	}
	var c Change
	var errs []error
	name := x.name
	if order > 0 {
		name = y.name
	}
	c.Path = join(dir, name)
	if order <= 0 {
		c.A = x.node
		errs = append(errs, x.err)
		defer x.advance()
	}
	if order >= 0 {
		c.B = y.node
		errs = append(errs, y.err)
		defer y.advance()
	}
	if err := errors.Join(errs...); err != nil {
		for _, err := range errs {
			if err != nil && !w.fail(c, err) {
				return false
			}
		}
		return true
	}
	switch {
	case order < 0 && y.partial, order > 0 && x.partial:
		return true // the other side may well have it
	case order == 0:
		return w.pair(c.Path, c.A, c.B)
	}
	return w.single(c.Path, c.A, c.B)
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// state says what a side stands at.
type state uint8

const (
	ended  state = iota
	child        // a node or an error, of that name
	failed       // an error of the directory
)

// side is a directory being listed.
type side struct {
	next    func() (tree.Node, error, bool)
	stop    func()
	state   state
	node    tree.Node
	err     error
	name    string
	started bool
	partial bool // some names were not told
}

func (w *walker) list(n tree.Node) *side {
	s := &side{stop: func() {}}
	if n != nil {
		s.next, s.stop = iter.Pull2(n.Entries(w.ctx, 0))
	}
	return s
}

// advance moves on to the next child.
func (s *side) advance() {
	s.state, s.node, s.err = ended, nil, nil
	if s.next == nil {
		return
	}
	n, err, ok := s.next()
	if !ok {
		s.next = nil
		return
	}
	last := s.name
	var p *fs.PathError
	switch {
	case err == nil:
		s.state, s.node, s.name = child, n, n.Attr().Name
	case errors.As(err, &p) && p.Path != "" && p.Path != "." && !strings.Contains(p.Path, "/"):
		s.state, s.err, s.name = child, err, p.Path
	default:
		s.state, s.err = failed, err
		return
	}
	if s.started && s.name <= last {
		// Merging would report nonsense; only damage looks like this.
		s.state, s.node = failed, nil
		s.err = fmt.Errorf("entry %q comes after %q: %w", s.name, last, chunk.ErrCorrupt)
		s.name, s.next = last, nil
	}
	s.started = true
}

// compare returns what differs between two nodes of one kind, and what could
// not be found out.
func (w *walker) compare(path string, a, b tree.Node) (Fields, []error) {
	x, y := a.Attr(), b.Attr()
	differ, first := w.links.meet(path, x, y)
	if first != nil && !differ {
		return first.fields, nil // the same two files were compared before
	}
	var f Fields
	set := func(bit Fields, differs bool) {
		if differs {
			f |= bit
		}
	}
	set(Links, differ)
	set(Mode, x.Mode != y.Mode && x.Kind != tree.Symlink)
	set(Owner, x.UID != y.UID || x.GID != y.GID)
	set(Mtime, x.Mtime != y.Mtime)
	set(Target, x.Target != y.Target)
	set(Rdev, x.Rdev != y.Rdev)
	var errs []error
	if w.opt.Ignore&Xattrs == 0 {
		same, err := w.sameXattrs(a, b)
		set(Xattrs, err == nil && !same)
		if err != nil {
			errs = append(errs, err)
		}
	}
	if x.Kind == tree.File {
		g, err := w.contents(a, b)
		f |= g
		if err != nil {
			errs = append(errs, err)
		}
	}
	f &^= w.opt.Ignore
	if len(errs) == 0 {
		w.links.remember(path, x, f)
	}
	return f, errs
}

func (w *walker) sameXattrs(a, b tree.Node) (bool, error) {
	x, err := a.Xattrs(w.ctx)
	if err != nil {
		return false, err
	}
	y, err := b.Xattrs(w.ctx)
	if err != nil {
		return false, err
	}
	return slices.EqualFunc(x, y, func(p, q tree.Xattr) bool {
		return p.Name == q.Name && bytes.Equal(p.Value, q.Value)
	}), nil
}
