package restore

import (
	"context"
	"errors"
	"io/fs"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// sweep goes through entries that the snapshot does not hold. It never
// follows a symbolic link, never leaves the mount, and spares what the
// filters do not cover and the directories that this leaves full.
type sweep struct {
	r     *run
	mount uint64
	entry func() error                           // told of each entry that may go
	gone  func(path string) error                // told of each before it goes
	del   func(fd int, name string, f int) error // deletes it; f is 0 or AT_REMOVEDIR
}

// at sweeps one name below the directory fd; empty says that nothing is left
// of it. rel is its path below the target, item below the item's root.
func (s *sweep) at(ctx context.Context, fd int, name, rel, item string, under bool) (empty bool, err error) {
	in, descend := s.r.filter.verdict(item, under)
	if !in && !descend {
		return false, nil
	}
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	st, err := lstatat(fd, name)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "delete", Path: rel, Err: err}
	}
	if s.r.opt.Spare != nil && s.r.opt.Spare(st.inode.dev, st.inode.ino) {
		return false, nil
	}
	flag := 0
	if st.kind == tree.Dir {
		flag = unix.AT_REMOVEDIR
		empty, err := s.contents(ctx, fd, name, rel, item, in)
		if err != nil || !empty {
			return false, err
		}
	}
	if !in {
		return false, nil
	}
	if err := s.entry(); err != nil {
		return false, err
	}
	if err := s.gone(rel); err != nil {
		return false, err
	}
	if err := s.del(fd, name, flag); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, &fs.PathError{Op: "delete", Path: rel, Err: err}
	}
	return true, nil
}

// contents sweeps what is in the directory name.
func (s *sweep) contents(ctx context.Context, fd int, name, rel, item string, under bool) (empty bool, err error) {
	if m, err := mountOf(fd, name); err != nil || m != s.mount {
		return false, err
	}
	sub, err := openat(fd, name, dirFlags, 0)
	if err != nil {
		return false, &fs.PathError{Op: "delete", Path: rel, Err: err}
	}
	defer unix.Close(sub)
	if m, err := mountOf(sub, ""); err != nil || m != s.mount {
		return false, err
	}
	ns, err := names(sub)
	if err != nil {
		return false, &fs.PathError{Op: "delete", Path: rel, Err: err}
	}
	empty = true
	for _, n := range ns {
		e, err := s.at(ctx, sub, n, join(rel, n), join(item, n), under)
		if err != nil {
			return false, err
		}
		empty = empty && e
	}
	return empty, nil
}

// sweeper deletes for real, or tells what it would delete.
func (r *run) sweeper(mount uint64) *sweep {
	return &sweep{
		r: r, mount: mount,
		entry: func() error { return nil },
		gone:  r.mayGo,
		del: func(fd int, name string, flag int) error {
			if r.opt.DryRun {
				return nil
			}
			return unix.Unlinkat(fd, name, flag)
		},
	}
}

// mayGo counts a deletion against what was allowed when it was counted, so
// that a target that changed meanwhile cannot exceed it.
func (r *run) mayGo(path string) error {
	r.mu.Lock()
	r.mayRemove--
	ok := r.mayRemove >= 0
	r.mu.Unlock()
	if !ok && !r.opt.DryRun {
		return errors.New("more is to be deleted than was counted at the start: the target changes; run the restore again")
	}
	r.done(Action{Op: Delete, Path: path}, nil, nil)
	return nil
}

// deleteExtra deletes the names of d that its node does not have.
func (r *run) deleteExtra(ctx context.Context, d *dir, extra []string) {
	if d.fd < 0 || d.made || d.mount != d.top.mount {
		return
	}
	s := r.sweeper(d.mount)
	for _, name := range extra {
		_, err := s.at(ctx, d.fd, name, join(d.rel, name), join(d.item, name), d.under)
		if err != nil && ctx.Err() == nil {
			r.problem(join(d.rel, name), err)
		}
	}
}

var errInWay = errors.New("a directory that is not empty is in the way: remove it, or restore with delete")

// checkWay tells whether the directory in the place of j's name could go, and
// lists in a dry run what would go with it.
func (r *run) checkWay(j *job) error {
	if r.opt.Delete && j.d.node != nil {
		if r.opt.DryRun {
			return r.clearWay(j)
		}
		return nil
	}
	fd, err := openat(j.d.fd, j.name, dirFlags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if ns, err := names(fd); err != nil || len(ns) > 0 {
		return errors.Join(errInWay, err)
	}
	return nil
}

// clearWay removes the directory in the place of j's name; with Delete, what
// is in it too.
func (r *run) clearWay(j *job) error {
	if r.opt.Delete && j.d.node != nil && j.d.mount == j.d.top.mount {
		empty, err := r.sweeper(j.d.mount).contents(context.Background(), j.d.fd, j.name, j.rel(), join(j.d.item, j.name), true)
		if err != nil {
			return err
		}
		if !empty {
			return errors.New("a directory with entries that are excluded, or mounted, is in the way: remove it")
		}
	}
	if r.opt.DryRun {
		return nil
	}
	err := unix.Unlinkat(j.d.fd, j.name, unix.AT_REMOVEDIR)
	if err == unix.ENOTEMPTY {
		return errInWay
	}
	return err
}

// mayDelete counts what Delete would take, and refuses if that is too much.
func (r *run) mayDelete(ctx context.Context, items []Item) error {
	c := &count{r: r}
	for _, it := range items {
		if it.Node.Attr().Kind != tree.Dir || r.root < 0 {
			continue
		}
		fd, err := openDirPath(r.root, it.Path, unix.O_RDONLY)
		if err != nil {
			continue // missing, or refused later with its reason
		}
		c.mount, err = mountOf(fd, "")
		if err == nil {
			err = c.dir(ctx, fd, it.Node, "", len(r.opt.Include) == 0)
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	allowed := int64(r.opt.MaxDelete * float64(c.total))
	if c.del > allowed {
		return &DeleteRefusedError{Delete: c.del, Total: c.total, Max: r.opt.MaxDelete}
	}
	r.mayRemove = allowed
	return nil
}

// count walks node and target as a restore would, and touches nothing.
type count struct {
	r          *run
	mount      uint64
	total, del int64 // entries that the filters cover; those that would go
}

func (c *count) dir(ctx context.Context, fd int, n tree.Node, item string, under bool) error {
	if m, err := mountOf(fd, ""); err != nil || m != c.mount {
		return err
	}
	ns, err := names(fd)
	if err != nil {
		return err
	}
	m := &merger{}
	m.have, _ = splitTemps(ns)
	whole := true
	for child, err := range n.Entries(ctx, 0) {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if err != nil || m.next(child.Attr().Name) != nil {
			whole = false
			continue
		}
		if m.exists {
			if err := c.both(ctx, fd, child, join(item, m.last), under); err != nil {
				return err
			}
		}
	}
	s := c.sweeper()
	if !whole {
		s.gone = func(string) error { return nil } // nothing will be deleted here
	}
	for _, name := range m.rest() {
		if _, err := s.at(ctx, fd, name, join(item, name), join(item, name), under); err != nil {
			return err
		}
	}
	return nil
}

// sweeper counts what a restore would delete.
func (c *count) sweeper() *sweep {
	return &sweep{
		r: c.r, mount: c.mount,
		entry: func() error { c.total++; return nil },
		gone:  func(string) error { c.del++; return nil },
		del:   func(int, string, int) error { return nil },
	}
}

// both counts a name that both sides have.
func (c *count) both(ctx context.Context, fd int, n tree.Node, item string, under bool) error {
	name := n.Attr().Name
	in, descend := c.r.filter.verdict(item, under)
	st, err := lstatat(fd, name)
	if err != nil || !in && !descend {
		return nil
	}
	if in {
		c.total++
	}
	isDir := n.Attr().Kind == tree.Dir
	if st.kind != tree.Dir || !isDir && !in {
		return nil
	}
	if isDir {
		sub, err := openat(fd, name, dirFlags, 0)
		if err != nil {
			return err
		}
		defer unix.Close(sub)
		return c.dir(ctx, sub, n, item, in)
	}
	_, err = c.sweeper().contents(ctx, fd, name, item, item, true)
	return err
}
