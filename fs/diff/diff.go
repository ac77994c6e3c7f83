package diff

import (
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// Kind is how a path changed.
type Kind uint8

const (
	Added    Kind = 1 // only in B
	Removed  Kind = 2 // only in A
	Modified Kind = 3 // in both, and Fields differ
)

func (k Kind) String() string {
	switch k {
	case Added:
		return "added"
	case Removed:
		return "removed"
	case Modified:
		return "modified"
	}
	return "unknown"
}

// Fields is a set of what differs between two nodes.
type Fields uint16

const (
	NodeKind Fields = 1 << iota // one is a file, the other a directory, say; nothing else is compared then
	Mode                        // permission bits; not of symlinks, which have none
	Owner                       // user or group ID
	Mtime                       //
	Size                        // of files; Content differs then too
	Content                     // bytes of files
	Target                      // of symlinks
	Rdev                        // of device nodes
	Xattrs                      // names or values, ACLs and capabilities included
	Links                       // paths that are one file in one tree and several in the other
	Holes                       // where the holes of a file are; only with Options.Holes
)

var fieldNames = [...]string{"kind", "mode", "owner", "mtime", "size", "content", "target", "rdev", "xattrs", "links", "holes"}

// Names returns the names of the set's members, in a fixed order.
func (f Fields) Names() []string {
	var list []string
	for i, name := range fieldNames {
		if f&(1<<i) != 0 {
			list = append(list, name)
		}
	}
	return list
}

// String joins Names with commas.
func (f Fields) String() string { return strings.Join(f.Names(), ",") }

// Change is one path that differs. A Removed or Added directory is followed by
// everything below it.
type Change struct {
	Path   string // from the roots on, "." for these; names as they are, any bytes
	Kind   Kind
	Fields Fields    // of a Modified path
	A, B   tree.Node // nil where the path does not exist
}

// Options say how closely to look. The zero value compares everything but
// contents of files with equal sizes, and holes.
type Options struct {
	// IDsComparable says that the chunk and tree IDs of both sides come from
	// the same keys: two snapshots of one repository. Equal IDs then stand for
	// equal bytes and different ones for different bytes, without reading.
	// What IDs cannot decide (chunks that were cut differently, zeros beside
	// holes) is read.
	IDsComparable bool

	// Content says to read and compare files whose sizes are equal, where no
	// IDs decide.
	Content bool

	// Quick trusts that files of equal size and mtime are equal, before
	// anything is read, IDs aside.
	Quick bool

	// Holes says to compare where the holes are. Copies made elsewhere differ
	// in that quite legitimately.
	Holes bool

	// Ignore is what is neither looked at nor reported.
	Ignore Fields
}
