package mount

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// memNode is a node of a stored snapshot that lives in memory.
type memNode struct {
	tree     *memTree
	number   uint64
	attr     tree.Attr
	xattrs   []tree.Xattr
	extents  []tree.Extent // nil: all data
	seed     uint64        // of the contents
	readErr  error         // damage
	findErr  error         // the directory yields this instead of the node
	children []*memNode
	first    *memNode // of a hard link: the first of its names
}

// memTree hands out the nodes by number.
type memTree struct {
	root  *memNode
	nodes []*memNode // in preorder
	reads atomic.Int64
}

// newMemTree numbers the nodes below root.
func newMemTree(root *memNode) *memTree {
	t := &memTree{root: root}
	root.attr.Kind = tree.Dir
	var walk func(n *memNode)
	walk = func(n *memNode) {
		n.tree = t
		n.number = uint64(len(t.nodes))
		t.nodes = append(t.nodes, n)
		if n.first != nil {
			n.number = n.first.number
		}
		slices.SortFunc(n.children, func(a, b *memNode) int { return strings.Compare(a.attr.Name, b.attr.Name) })
		for _, c := range n.children {
			walk(c)
		}
	}
	walk(root)
	return t
}

func (n *memNode) Attr() *tree.Attr                             { return &n.attr }
func (n *memNode) Number() uint64                               { return n.number }
func (n *memNode) Xattrs(context.Context) ([]tree.Xattr, error) { return n.xattrs, nil }

func (n *memNode) ByNumber(_ context.Context, i uint64) (tree.Node, error) {
	if i >= uint64(len(n.tree.nodes)) {
		return nil, &fs.PathError{Op: "number", Path: fmt.Sprint(i), Err: fs.ErrNotExist}
	}
	return n.tree.nodes[i], nil
}

func (n *memNode) find(name string) (int, bool) {
	return slices.BinarySearchFunc(n.children, name, func(c *memNode, s string) int { return strings.Compare(c.attr.Name, s) })
}

func (n *memNode) Lookup(_ context.Context, name string) (tree.Node, error) {
	if n.attr.Kind != tree.Dir {
		return nil, syscall.ENOTDIR
	}
	i, ok := n.find(name)
	if !ok {
		return nil, &fs.PathError{Op: "lookup", Path: name, Err: fs.ErrNotExist}
	}
	if err := n.children[i].findErr; err != nil {
		return nil, &fs.PathError{Op: "lookup", Path: name, Err: err}
	}
	return n.children[i], nil
}

func (n *memNode) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		for i := from; i < int64(len(n.children)); i++ {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			c := n.children[i]
			if c.findErr != nil {
				if !yield(nil, &fs.PathError{Op: "list", Path: c.attr.Name, Err: c.findErr}) {
					return
				}
			} else if !yield(c, nil) {
				return
			}
		}
	}
}

func (n *memNode) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n.tree.reads.Add(1)
	if n.readErr != nil {
		return 0, n.readErr
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	want := int(max(min(int64(len(p)), n.attr.Size-off), 0))
	p, short := p[:want], want < len(p)
	fillBytes(p, n.seed, off)
	for _, e := range n.extents {
		if e.Kind == tree.Data {
			continue
		}
		lo, hi := max(e.Off, off), min(e.Off+e.Len, off+int64(want))
		if lo < hi {
			clear(p[lo-off : hi-off])
		}
	}
	if short {
		return want, io.EOF
	}
	return want, nil
}

func (n *memNode) Extents(_ context.Context, off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		ext := n.extents
		if ext == nil && n.attr.Size > 0 {
			ext = []tree.Extent{{Len: n.attr.Size, Kind: tree.Data}}
		}
		for _, e := range ext {
			if e.Off+e.Len > off && !yield(e, nil) {
				return
			}
		}
	}
}

// fillBytes writes the contents that seed stands for, from off on.
func fillBytes(p []byte, seed uint64, off int64) {
	if seed == 0 { // zeros, for benchmarks
		clear(p)
		return
	}
	var w [8]byte
	for i := 0; i < len(p); {
		at := off + int64(i)
		binary.LittleEndian.PutUint64(w[:], (seed+uint64(at/8)+1)*0x9e3779b97f4a7c15)
		i += copy(p[i:], w[at%8:])
	}
}

// The makers of nodes.

func dirNode(name string, children ...*memNode) *memNode {
	return &memNode{attr: tree.Attr{Name: name, Kind: tree.Dir, Mode: 0o755, Nlink: 2, Mtime: tree.Time{Sec: 1e9, Nsec: 5}}, children: children}
}

func fileNode(name string, size int64, seed uint64) *memNode {
	return &memNode{seed: seed, attr: tree.Attr{Name: name, Kind: tree.File, Mode: 0o644, Nlink: 1, Size: size, Allocated: (size + 4095) &^ 4095, Mtime: tree.Time{Sec: 1e9 + int64(seed), Nsec: 123456789}}}
}

func linkNode(name, target string) *memNode {
	return &memNode{attr: tree.Attr{Name: name, Kind: tree.Symlink, Mode: 0o777, Nlink: 1, Size: int64(len(target)), Target: target, Mtime: tree.Time{Sec: 7}}}
}

func specialNode(name string, kind tree.Kind, rdev uint64) *memNode {
	return &memNode{attr: tree.Attr{Name: name, Kind: kind, Mode: 0o640, Nlink: 1, Rdev: rdev, Mtime: tree.Time{Sec: 8}}}
}

// smallFiles is a directory tree of many small files, from a fixed seed.
func smallFiles(dirs, perDir int) *memNode {
	r := rand.New(rand.NewPCG(1, 2))
	root := dirNode("")
	for d := range dirs {
		dn := dirNode(fmt.Sprintf("dir%04d", d))
		for f := range perDir {
			dn.children = append(dn.children, fileNode(fmt.Sprintf("file%05d", f), 1+r.Int64N(12000), r.Uint64N(1e6)))
		}
		root.children = append(root.children, dn)
	}
	return root
}

// writeTo writes the plain files and directories below n to a directory.
func (n *memNode) writeTo(dir string) error {
	for _, c := range n.children {
		p := filepath.Join(dir, c.attr.Name)
		switch c.attr.Kind {
		case tree.Dir:
			if err := os.Mkdir(p, 0o755); err != nil {
				return err
			}
			if err := c.writeTo(p); err != nil {
				return err
			}
		case tree.File:
			b := make([]byte, c.attr.Size)
			fillBytes(b, c.seed, 0)
			if err := os.WriteFile(p, b, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
