package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

const (
	maxDepth = 8192 // how deep directories nest: each level holds a descriptor
	maxDirs  = 512  // that are open for workers, beside those
)

// dir is a directory at work. The walker fills it; the last of the walker,
// the jobs and the subdirectories to let go of it finishes it.
type dir struct {
	parent   *dir
	top      *dir      // the directory that the item names
	node     tree.Node // nil: a parent of an item's path
	name     string
	rel      string // below the target; "" is the target
	item     string // below the item's root; "" is that root
	depth    int
	included bool // its own attributes are restored
	under    bool // everything below is included

	fd       int   // -1: not there, or not there yet
	made     bool  // by us, or would be
	before   stat  // if it was there
	inWay    *stat // what is to be replaced by it
	unlocked bool  // its mode was opened for us
	mount    uint64
	temps    []string // temporary files of runs that were killed
	walked   bool     // to the end, so that it is known who wants them

	refs atomic.Int32
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func (d *dir) path() string {
	if d.rel == "" {
		return "."
	}
	return d.rel
}

// child returns a directory below d, and takes a reference to d.
func (d *dir) child(name string, n tree.Node) *dir {
	d.refs.Add(1)
	c := &dir{parent: d, top: d.top, node: n, name: name, rel: join(d.rel, name), depth: d.depth + 1, fd: -1}
	c.refs.Store(1)
	return c
}

// release lets go of d and finishes it, and its parents, after the last one.
func (r *run) release(d *dir) {
	for ; d != nil && d.refs.Add(-1) == 0; d = d.parent {
		r.finish(d)
		if d.fd >= 0 {
			unix.Close(d.fd)
			r.dirs.Add(-1)
		}
	}
}

// hasFD gives d its descriptor, until it is released.
func (r *run) hasFD(d *dir, fd int) {
	d.fd = fd
	r.dirs.Add(1)
}

// item restores one item.
func (r *run) item(ctx context.Context, it Item) {
	a := it.Node.Attr()
	d := &dir{fd: -1}
	d.refs.Store(1)
	defer func() { r.release(d) }()
	if r.root >= 0 {
		err := r.openRoot(d)
		if err != nil {
			r.problem(".", err)
			return
		}
	}
	if it.Path == "" {
		d.top, d.node = d, it.Node
		d.included, d.under = !it.Bare && r.filter.root("", true), len(r.opt.Include) == 0
		r.walk(ctx, d)
		return
	}
	r.hold(d)
	elems := strings.Split(it.Path, "/")
	last := elems[len(elems)-1]
	for _, name := range elems[:len(elems)-1] {
		c := d.child(name, nil)
		r.release(d)
		d = c
		if err := r.open(d); err != nil {
			r.problem(d.rel, err)
			return
		}
		r.hold(d)
	}
	if a.Kind == tree.Dir {
		c := d.child(last, it.Node)
		c.top = c
		c.included, c.under = !it.Bare && r.filter.root("", true), len(r.opt.Include) == 0
		r.enter(ctx, c, true)
	} else if r.filter.root(it.Path, false) {
		r.enqueue(ctx, d, last, it.Node, true)
	}
}

// openRoot makes d the target itself.
func (r *run) openRoot(d *dir) error {
	fd, err := dup(r.root)
	if err != nil {
		return err
	}
	r.hasFD(d, fd)
	if d.before, err = handle(d.fd).stat(); err != nil {
		return err
	}
	if r.keepsOut(d.before) {
		if err := handle(d.fd).chmod(d.before.mode | 0o700); err != nil {
			return err
		}
		d.unlocked = true
	}
	return r.opened(d)
}

// hold keeps a parent of an item that was opened to us so until all items are
// done: others may have the same parent.
func (r *run) hold(d *dir) {
	if d.unlocked {
		d.refs.Add(1)
		r.held = append(r.held, d)
	}
}

// opened notes what a directory that exists is like.
func (r *run) opened(d *dir) error {
	st, err := handle(d.fd).stat()
	if err != nil {
		return err
	}
	if !d.unlocked {
		d.before = st
	}
	if r.opt.Delete && !d.made {
		if d.mount, err = mountOf(d.fd, ""); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.devs[st.dev]; !ok && !r.opt.DryRun {
		fd, err := dup(d.fd)
		if err != nil {
			return err
		}
		r.devs[st.dev] = fd
	}
	return nil
}

// open looks at what the target has where d goes, and opens it if it is a
// directory.
func (r *run) open(d *dir) error {
	p := d.parent
	if p.fd < 0 {
		return nil
	}
	st, err := lstatat(p.fd, d.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.kind != tree.Dir {
		if d.node == nil {
			return fmt.Errorf("a %v is where a directory is wanted, and is not followed: remove it, or restore elsewhere: %w", st.kind, unix.ENOTDIR)
		}
		if r.leave(d.node.Attr(), st) {
			return fmt.Errorf("a %v is where a directory is wanted, and the overwrite policy keeps it: %w", st.kind, fs.ErrExist)
		}
		d.inWay = &st
		return nil
	}
	d.before = st
	fd, err := r.openSub(d, st)
	if err != nil {
		return err
	}
	r.hasFD(d, fd)
	return r.opened(d)
}

// keepsOut tells whether a directory must be opened to us, and can be.
func (r *run) keepsOut(st stat) bool {
	return !r.super && !r.opt.DryRun && st.mode&0o700 != 0o700 && st.uid == uint32(os.Geteuid())
}

// openSub opens a directory that exists; one of our own that keeps us out is
// opened to us until it is finished.
func (r *run) openSub(d *dir, st stat) (int, error) {
	if r.keepsOut(st) {
		fd, err := openat(d.parent.fd, d.name, pathFlags|unix.O_DIRECTORY, 0)
		if err != nil {
			return -1, err
		}
		h := handle(fd)
		defer h.close()
		if err := h.chmod(st.mode | 0o700); err != nil {
			return -1, err
		}
		d.unlocked = true
	}
	return openat(d.parent.fd, d.name, dirFlags, 0)
}

// ensure makes d and its parents if they are not there.
func (r *run) ensure(d *dir) error {
	if d.fd >= 0 || d.made {
		return nil
	}
	if d.parent == nil { // a target that a dry run does not make
		d.made = true
		return nil
	}
	if err := r.ensure(d.parent); err != nil {
		return err
	}
	if r.opt.DryRun {
		d.made = true
		return nil
	}
	p := d.parent
	if d.inWay != nil {
		if err := unix.Unlinkat(p.fd, d.name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	mode := uint32(0o700)
	if d.node == nil {
		mode = 0o755
	}
	err := unix.Mkdirat(p.fd, d.name, mode)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	fd, err := openat(p.fd, d.name, dirFlags, 0)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return fmt.Errorf("another process put something in the place of the directory: %w", err)
	}
	if err != nil {
		return err
	}
	r.hasFD(d, fd)
	d.made = true
	return r.opened(d)
}

// enter restores a directory, of which it takes over the reference. exists
// says that the target may have something there.
func (r *run) enter(ctx context.Context, d *dir, exists bool) {
	defer r.release(d)
	if d.depth > maxDepth {
		r.problem(d.rel, fmt.Errorf("directories nest deeper than %d: restore this one by itself", maxDepth))
		return
	}
	r.wait(ctx, d)
	var err error
	if exists {
		err = r.open(d)
	}
	if err == nil && d.included {
		err = r.ensure(d)
	}
	if err != nil {
		r.problem(d.rel, err)
		return
	}
	r.walk(ctx, d)
}

// wait lets workers finish names while too many directories are open for these. d
// is not open yet.
func (r *run) wait(ctx context.Context, d *dir) {
	for int(r.dirs.Load())-d.depth > maxDirs && r.undone.Load() > 0 {
		r.flush(ctx)
		select {
		case <-r.did:
		case <-ctx.Done():
			return
		}
	}
}

// walk restores what is in d: the node's children, beside what the target
// has, both sorted.
func (r *run) walk(ctx context.Context, d *dir) {
	m, err := r.merger(d)
	if err != nil {
		r.problem(d.path(), err)
		return
	}
	whole := true
	bad := func(path string, err error) {
		whole = false
		if ctx.Err() == nil {
			r.problem(path, err)
		}
	}
	for n, err := range d.node.Entries(ctx, 0) {
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			bad(childPath(d, err), err)
			continue
		}
		name := n.Attr().Name
		if err := m.next(name); err != nil {
			bad(d.path(), err)
			continue
		}
		item := join(d.item, name)
		in, descend := r.filter.verdict(item, d.under)
		switch {
		case n.Attr().Kind == tree.Dir && descend:
			c := d.child(name, n)
			c.item, c.included, c.under = item, in, in
			r.enter(ctx, c, m.exists)
		case n.Attr().Kind != tree.Dir && in:
			r.enqueue(ctx, d, name, n, m.exists)
		}
	}
	d.walked = whole && ctx.Err() == nil
	if r.opt.Delete && d.walked {
		r.deleteExtra(ctx, d, m.rest())
	}
}

// childPath is the path of a child that could not be read.
func childPath(d *dir, err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) && checkName(pe.Path) == nil {
		return join(d.rel, pe.Path)
	}
	return d.path()
}

// enqueue hands what is no directory to the workers.
func (r *run) enqueue(ctx context.Context, d *dir, name string, n tree.Node, exists bool) {
	if err := r.ensure(d); err != nil {
		r.problem(join(d.rel, name), err)
		return
	}
	j := &job{d: d, name: name, node: n, exists: exists, group: r.groupOf(n.Attr())}
	if len(d.temps) > 0 && n.Attr().Kind == tree.File {
		_, j.adopt = slices.BinarySearch(d.temps, tempFor(n.Attr()))
	}
	d.refs.Add(1)
	r.undone.Add(1)
	r.send(ctx, j)
}
