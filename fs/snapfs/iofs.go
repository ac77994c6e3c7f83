package snapfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// FS shows what is below n, stored or live, as an fs.FS: also an fs.ReadDirFS,
// fs.StatFS and fs.ReadLinkFS. Open files are io.ReaderAt and io.Seeker, Sys of
// an fs.FileInfo is the *tree.Attr. All reads end when ctx is done.
//
// Names that io/fs cannot say, those that are not UTF-8, are left out. Symlinks
// are followed within the tree; one that leads out of it, or to nothing, is
// fs.ErrNotExist, and more than 40 on one way are syscall.ELOOP. FIFOs, sockets
// and devices read as empty. Where entries of a directory are damaged, ReadDir
// returns the others beside the error.
func FS(ctx context.Context, n tree.Node) fs.FS { return &ioFS{ctx, n} }

var (
	_ fs.ReadDirFS   = (*ioFS)(nil)
	_ fs.StatFS      = (*ioFS)(nil)
	_ fs.ReadLinkFS  = (*ioFS)(nil)
	_ fs.ReadDirFile = (*ioDir)(nil)
	_ io.ReaderAt    = (*ioFile)(nil)
	_ io.Seeker      = (*ioFile)(nil)
)

type ioFS struct {
	ctx  context.Context
	root tree.Node
}

// maxLinks is how many symlinks are followed on one way, as on Linux.
const maxLinks = 40

// find returns the node of that name; follow tells whether a symlink at the end
// of the way is followed, too.
func (f *ioFS) find(op, name string, follow bool) (tree.Node, error) {
	fail := func(err error) (tree.Node, error) {
		return nil, &fs.PathError{Op: op, Path: name, Err: cause(err)}
	}
	if !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	way, links := []tree.Node{f.root}, 0
	for rest := name; rest != ""; {
		elem, more, _ := strings.Cut(rest, "/")
		rest = more
		switch elem {
		case "", ".":
			continue
		case "..": // of a symlink's target
			if way = way[:len(way)-1]; len(way) == 0 {
				return fail(fmt.Errorf("a symlink leads out of the tree: %w", fs.ErrNotExist))
			}
			continue
		}
		n, err := way[len(way)-1].Lookup(f.ctx, elem)
		if err != nil {
			return fail(err)
		}
		if n.Attr().Kind != tree.Symlink || rest == "" && !follow {
			way = append(way, n)
			continue
		}
		target := n.Attr().Target
		if links++; links > maxLinks {
			return fail(syscall.ELOOP)
		}
		if strings.HasPrefix(target, "/") {
			return fail(fmt.Errorf("the symlink %q leads out of the tree: %w", target, fs.ErrNotExist))
		}
		rest = target + "/" + rest
	}
	return way[len(way)-1], nil
}

// Open implements fs.FS.
func (f *ioFS) Open(name string) (fs.File, error) {
	n, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	info := ioInfo{path.Base(name), n.Attr()}
	if n.Attr().Kind == tree.Dir {
		return &ioDir{info: info, n: n, ctx: f.ctx}, nil
	}
	file := &ioFile{info: info}
	var r io.ReaderAt = nodeReader{f.ctx, n}
	if o, ok := n.(tree.Opener); ok {
		live, err := o.Open(f.ctx)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: cause(err)}
		}
		file.live, r = live, live
		if file.info.attr, err = live.Stat(); err != nil {
			return nil, errors.Join(err, live.Close())
		}
	}
	size := int64(0)
	if n.Attr().Kind == tree.File {
		size = file.info.attr.Size
	}
	file.SectionReader = io.NewSectionReader(r, 0, size)
	return file, nil
}

// ReadDir implements fs.ReadDirFS.
func (f *ioFS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := f.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	d := &ioDir{info: ioInfo{path.Base(name), n.Attr()}, n: n, ctx: f.ctx}
	defer d.Close()
	return d.ReadDir(-1)
}

// Stat implements fs.StatFS.
func (f *ioFS) Stat(name string) (fs.FileInfo, error) { return f.stat("stat", name, true) }

// Lstat implements fs.ReadLinkFS.
func (f *ioFS) Lstat(name string) (fs.FileInfo, error) { return f.stat("lstat", name, false) }

func (f *ioFS) stat(op, name string, follow bool) (fs.FileInfo, error) {
	n, err := f.find(op, name, follow)
	if err != nil {
		return nil, err
	}
	return ioInfo{path.Base(name), n.Attr()}, nil
}

// ReadLink implements fs.ReadLinkFS.
func (f *ioFS) ReadLink(name string) (string, error) {
	n, err := f.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	if n.Attr().Kind != tree.Symlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return n.Attr().Target, nil
}

// nodeReader reads a node without a context of its own in each call.
type nodeReader struct {
	ctx context.Context
	n   tree.Node
}

func (r nodeReader) ReadAt(p []byte, off int64) (int, error) { return r.n.ReadAt(r.ctx, p, off) }

// ioFile is an open file. Its size is that which it had when it was opened.
type ioFile struct {
	*io.SectionReader
	info ioInfo
	live tree.OpenFile // nil unless the node is a live one
}

func (f *ioFile) Stat() (fs.FileInfo, error) { return f.info, nil }

func (f *ioFile) Close() error {
	if f.live == nil {
		return nil
	}
	err := f.live.Close()
	f.live = nil
	return err
}

// ioDir is an open directory.
type ioDir struct {
	info ioInfo
	n    tree.Node
	ctx  context.Context
	next func() (tree.Node, error, bool) // nil until the first ReadDir
	stop func()
}

func (d *ioDir) Stat() (fs.FileInfo, error) { return d.info, nil }

func (d *ioDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name, Err: syscall.EISDIR}
}

func (d *ioDir) Close() error {
	if d.stop != nil {
		d.stop()
	}
	return nil
}

// ReadDir implements fs.ReadDirFile.
func (d *ioDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if d.next == nil {
		d.next, d.stop = iter.Pull2(d.n.Entries(d.ctx, 0))
	}
	var list []fs.DirEntry
	var errs []error
	for n <= 0 || len(list) < n {
		c, err, ok := d.next()
		switch {
		case !ok && n > 0 && len(list) == 0:
			return nil, io.EOF
		case !ok:
			return list, errors.Join(errs...)
		case err != nil && n > 0:
			return list, err
		case err != nil:
			errs = append(errs, err)
		case fs.ValidPath(c.Attr().Name):
			list = append(list, fs.FileInfoToDirEntry(ioInfo{c.Attr().Name, c.Attr()}))
		}
	}
	return list, nil
}

// ioInfo is an fs.FileInfo. The name is that which was asked for: a root has
// none of its own, and a symlink's is not its target's.
type ioInfo struct {
	name string
	attr *tree.Attr
}

func (i ioInfo) Name() string       { return i.name }
func (i ioInfo) Size() int64        { return i.attr.Size }
func (i ioInfo) ModTime() time.Time { return i.attr.Mtime.Time() }
func (i ioInfo) IsDir() bool        { return i.attr.Kind == tree.Dir }
func (i ioInfo) Sys() any           { return i.attr }

func (i ioInfo) Mode() fs.FileMode {
	m := fs.FileMode(i.attr.Mode & 0o777)
	for bit, mode := range map[uint32]fs.FileMode{syscall.S_ISUID: fs.ModeSetuid, syscall.S_ISGID: fs.ModeSetgid, syscall.S_ISVTX: fs.ModeSticky} {
		if i.attr.Mode&bit != 0 {
			m |= mode
		}
	}
	switch i.attr.Kind {
	case tree.Dir:
		m |= fs.ModeDir
	case tree.Symlink:
		m |= fs.ModeSymlink
	case tree.FIFO:
		m |= fs.ModeNamedPipe
	case tree.Socket:
		m |= fs.ModeSocket
	case tree.CharDevice:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case tree.BlockDevice:
		m |= fs.ModeDevice
	}
	return m
}
