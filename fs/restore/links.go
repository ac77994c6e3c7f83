package restore

import (
	"context"
	"fmt"
	"path"
	"sync"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// linkKey names a file of the snapshot that has several names.
type linkKey struct{ dev, ino uint64 }

// group is such a file. The first of its names that is restored is written,
// the others are linked to it, also when that first name is not the
// snapshot's first because the filters left that out.
type group struct {
	key  linkKey
	seen uint32 // names met; the walker's alone

	mu    sync.Mutex // held while one of the names is restored
	path  string     // a name that has the contents; "": none yet
	attr  *tree.Attr
	inode inode // of that name; zero in a dry run that would create it
	sum   []byte
}

// groupOf returns the group of a file with several names, else nil. The table
// forgets a group with its last name.
func (r *run) groupOf(a *tree.Attr) *group {
	if a.Nlink < 2 {
		return nil
	}
	k := linkKey{a.Dev, a.Ino}
	g := r.groups[k]
	if g == nil {
		g = &group{key: k}
		r.groups[k] = g
	}
	if g.seen++; g.seen >= a.Nlink {
		delete(r.groups, k)
	}
	return g
}

// linked restores one of several names. Jobs are taken in order, so whoever
// holds the lock of a group is at work, not waiting for another.
func (w *worker) linked(ctx context.Context, j *job) (outcome, error) {
	g, a := j.group, j.node.Attr()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.path != "" && oneFile(g.attr, a) {
		o, ok, err := w.link(j)
		if ok || err != nil {
			return o, err
		}
	}
	o, err := w.place(ctx, j)
	if err == nil && o.exact {
		g.path, g.attr, g.inode, g.sum = j.rel(), a, o.inode, o.sum
	}
	return o, err
}

// oneFile guards against a damaged snapshot: one file has one set of
// attributes under all its names.
func oneFile(a, b *tree.Attr) bool {
	return a.Kind == b.Kind && a.Size == b.Size && a.Mtime == b.Mtime && a.Mode == b.Mode &&
		a.UID == b.UID && a.GID == b.GID && a.Target == b.Target && a.Rdev == b.Rdev
}

// link makes the name another one of the group's file. ok is false where that
// cannot be: too many links, another file system, or the file is gone.
func (w *worker) link(j *job) (o outcome, ok bool, err error) {
	g := j.group
	o = outcome{Action: Action{Op: Create}, inode: g.inode, exact: true, sum: g.sum}
	var old *stat
	if j.exists && j.d.fd >= 0 {
		if st, err := lstatat(j.d.fd, j.name); err == nil {
			old = &st
		}
	}
	if old != nil {
		if old.inode == g.inode {
			o.Op = Keep
			return o, true, nil
		}
		if w.r.leave(j.node.Attr(), *old) {
			return outcome{Action: Action{Op: Keep}}, true, nil
		}
		o.Op = Change
		if old.kind == tree.Dir {
			if err := w.r.checkWay(j); err != nil {
				return o, false, err
			}
		}
	}
	if w.r.opt.DryRun {
		return o, true, nil
	}
	tmp := randomTemp()
	if !w.r.linkTo(g, j.d, tmp) {
		return o, false, nil
	}
	err = w.r.rename(j, tmp, old)
	if err != nil {
		_ = unix.Unlinkat(j.d.fd, tmp, 0)
		return o, false, fmt.Errorf("link to %q: %w", g.path, err)
	}
	return o, true, nil
}

// linkTo gives the group's file the name tmp in d, and makes sure that it is
// that file.
func (r *run) linkTo(g *group, d *dir, tmp string) bool {
	from, base := path.Split(g.path)
	if from != "" {
		from = from[:len(from)-1]
	}
	fd := d.fd
	if from != d.rel {
		var err error
		if fd, err = openDirPath(r.root, from, unix.O_PATH); err != nil {
			return false
		}
		defer unix.Close(fd)
	}
	if unix.Linkat(fd, base, d.fd, tmp, 0) != nil {
		return false
	}
	st, err := lstatat(d.fd, tmp)
	if err != nil || st.inode != g.inode {
		_ = unix.Unlinkat(d.fd, tmp, 0)
		return false
	}
	return true
}
