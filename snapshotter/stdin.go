package snapshotter

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"syscall"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// stdin is a file that is read once, from a stream.
type stdin struct {
	attr tree.Attr
	r    io.Reader
}

// Stdin returns a root that holds one file of that name, whose contents are
// what r gives.
func Stdin(name string, r io.Reader, mtime tree.Time) (tree.Node, error) {
	if !tree.ValidName(name) || len(name) > 255 {
		return nil, fmt.Errorf("%q can be no file's name", name)
	}
	f := &stdin{tree.Attr{Name: name, Kind: tree.File, Mode: 0o644, Mtime: mtime, Nlink: 1}, r}
	return &virtual{attr: tree.Attr{Kind: tree.Dir, Mode: 0o755, Mtime: mtime, Nlink: 1}, children: map[string]tree.Node{name: f}}, nil
}

func (f *stdin) Attr() *tree.Attr                             { return &f.attr }
func (f *stdin) Xattrs(context.Context) ([]tree.Xattr, error) { return nil, nil }
func (f *stdin) Stream() io.Reader                            { return f.r }
func (f *stdin) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.attr.Name, Err: err}
}
func (f *stdin) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, f.fail("read", syscall.ESPIPE)
}

func (f *stdin) Lookup(context.Context, string) (tree.Node, error) {
	return nil, f.fail("lookup", syscall.ENOTDIR)
}

func (f *stdin) Entries(context.Context, int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) { yield(nil, f.fail("readdir", syscall.ENOTDIR)) }
}
