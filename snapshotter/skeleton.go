package snapshotter

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// virtual is a directory that joins snapshotted paths: it has the attributes of
// a live directory, or none, and only the children that were asked for.
type virtual struct {
	attr     tree.Attr
	live     tree.Node // for its extended attributes; nil for the root
	children map[string]tree.Node
}

// Join returns a root under which each path of the given nodes stands where
// it stands in the file system: the node of /usr/share is root/usr/share. open
// gives the live node of an absolute path. Of two paths one of which lies in
// the other the outer one counts.
func Join(paths []string, open func(path string) (tree.Node, error)) (tree.Node, error) {
	paths = slices.Clone(paths)
	for i, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil {
			return nil, err
		}
		paths[i] = abs
	}
	slices.Sort(paths)
	root := &virtual{attr: tree.Attr{Kind: tree.Dir, Mode: 0o755, Nlink: 1}, children: map[string]tree.Node{}}
	for _, p := range paths {
		n, err := open(p)
		if err != nil {
			return nil, err
		}
		if p == "/" {
			return n, nil
		}
		if err := root.put(p, n, open); err != nil {
			return nil, err
		}
	}
	return root, nil
}

func (v *virtual) put(path string, n tree.Node, open func(string) (tree.Node, error)) error {
	parts := strings.Split(path[1:], "/")
	at := v
	for i, name := range parts[:len(parts)-1] {
		next, ok := at.children[name]
		if !ok {
			// With the slash, a symlink on the way is what it points to.
			live, err := open("/" + strings.Join(parts[:i+1], "/") + "/")
			if err != nil {
				return err
			}
			d := &virtual{attr: *live.Attr(), live: live, children: map[string]tree.Node{}}
			d.attr.Name = name
			at.children[name] = d
			at = d
			continue
		}
		d, ok := next.(*virtual)
		if !ok {
			return nil // lies in a path that is taken whole
		}
		at = d
	}
	at.children[parts[len(parts)-1]] = n
	return nil
}

func (v *virtual) Attr() *tree.Attr { return &v.attr }

func (v *virtual) Xattrs(ctx context.Context) ([]tree.Xattr, error) {
	if v.live == nil {
		return nil, nil
	}
	return v.live.Xattrs(ctx)
}

func (v *virtual) Lookup(_ context.Context, name string) (tree.Node, error) {
	if n := v.children[name]; n != nil {
		return n, nil
	}
	return nil, &fs.PathError{Op: "lookup", Path: name, Err: fs.ErrNotExist}
}

func (v *virtual) Entries(_ context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		names := slices.Sorted(maps.Keys(v.children))
		for _, name := range names[min(max(from, 0), int64(len(names))):] {
			n := v.children[name]
			if n.Attr().Name != name {
				yield(nil, fmt.Errorf("path named %q is found as %q", name, n.Attr().Name))
				return
			}
			if !yield(n, nil) {
				return
			}
		}
	}
}

func (v *virtual) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: v.attr.Name, Err: syscall.EISDIR}
}
