package diff

import "github.com/cutbankfs/cutbank/repo/tree"

// inode names a file of one tree.
type inode struct{ dev, ino uint64 }

// group is what is known of a file with several names.
type group struct {
	first  string // the first of its paths that both trees have
	left   uint32 // names not met yet, as far as the link count tells
	fields Fields // what differed at first, if known
	known  bool
}

// linkTable knows the files with several names of both trees. Files all of
// whose names were met are forgotten, so that it stays small where links stay
// close together.
type linkTable struct{ a, b map[inode]*group }

func (t *linkTable) init() { t.a, t.b = map[inode]*group{}, map[inode]*group{} }

// met counts one name and returns the file's group, nil if it has one name.
func met(m map[inode]*group, x *tree.Attr) *group {
	if x == nil || x.Nlink < 2 || x.Kind == tree.Dir {
		return nil
	}
	key := inode{x.Dev, x.Ino}
	g := m[key]
	if g == nil {
		g = &group{left: x.Nlink}
		m[key] = g
	}
	if g.left--; g.left == 0 {
		delete(m, key)
	}
	return g
}

// forget counts names that have no counterpart. They make no difference in
// links: that they were added or removed says it all.
func (t *linkTable) forget(x, y *tree.Attr) {
	met(t.a, x)
	met(t.b, y)
}

// meet counts a name that both trees have, and reports whether the trees
// differ in what else is the same file. If they do not, and the two files were
// compared at an earlier path, it returns that.
func (t *linkTable) meet(path string, x, y *tree.Attr) (differ bool, before *group) {
	first := func(g *group) string {
		if g == nil {
			return path
		}
		if g.first == "" {
			g.first = path
		}
		return g.first
	}
	g, h := met(t.a, x), met(t.b, y)
	p, q := first(g), first(h)
	if p == q && p != path && g.known {
		return false, g
	}
	return p != q, nil
}

// remember notes what differs between two files at the first of their common
// paths, for the others.
func (t *linkTable) remember(path string, x *tree.Attr, f Fields) {
	if g := t.a[inode{x.Dev, x.Ino}]; g != nil && g.first == path {
		g.fields, g.known = f, true
	}
}
