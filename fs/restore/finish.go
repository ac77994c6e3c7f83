package restore

import (
	"context"
	"fmt"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// finish gives a directory its own attributes, once everything in it is done.
func (r *run) finish(d *dir) {
	if d.node == nil {
		r.relock(d)
		return
	}
	if r.opt.DryRun {
		r.finishDry(d)
		return
	}
	if d.fd < 0 {
		return
	}
	r.removeTemps(d)
	op := Keep
	switch a := d.node.Attr(); {
	case d.made && d.inWay != nil:
		op = Change
	case d.made:
		op = Create
	case !d.included:
		r.relock(d)
		return
	case r.leave(a, d.before):
		r.relock(d)
		r.done(Action{Op: Keep, Path: d.path()}, nil, nil)
		return
	}
	// The run may have been cancelled; the directory is finished all the same.
	want, err := attrsOf(context.Background(), d.node)
	if err != nil {
		r.relock(d)
		r.problem(d.path(), err)
		return
	}
	h := handle(d.fd)
	if op == Keep && r.differs(h, want, d.before) {
		op = Meta
	}
	now, err := h.stat()
	if err == nil && (op != Keep || now.mtime != d.before.mtime || d.unlocked) {
		err = r.apply(h, r.delay(d, want, now))
	}
	if err != nil {
		r.problem(d.path(), err)
	}
	r.done(Action{Op: op, Path: d.path()}, nil, r.dirLine(d, h))
}

// dirLine is the receipt's line about a directory, nil without a receipt.
func (r *run) dirLine(d *dir, h handle) *ReceiptLine {
	if r.opt.Receipt == nil {
		return nil
	}
	l := newLine(d.path(), d.node.Attr(), nil)
	if !r.super {
		if st, err := h.stat(); err == nil {
			l.UID, l.GID, l.Mode = st.uid, st.gid, fmt.Sprintf("%04o", safeMode(d.node.Attr(), st))
		}
	}
	return l
}

func (r *run) finishDry(d *dir) {
	a := Action{Path: d.path()}
	switch {
	case d.made && d.inWay != nil:
		a.Op = Change
	case d.made:
		a.Op = Create
	case !d.included || d.fd < 0:
		return
	case !r.leave(d.node.Attr(), d.before):
		want, err := attrsOf(context.Background(), d.node)
		if err != nil {
			r.problem(d.path(), err)
			return
		}
		if r.differs(handle(d.fd), want, d.before) {
			a.Op = Meta
		}
	}
	r.done(a, nil, nil)
}

// relock gives a directory back the mode that kept us out.
func (r *run) relock(d *dir) {
	if d.unlocked {
		if err := handle(d.fd).chmod(d.before.mode); err != nil {
			r.problem(d.path(), err)
		}
	}
}

// lateMode is a directory that its owner may not search, finished for an
// ordinary user: it must stay searchable until no hard link may lead into it.
type lateMode struct {
	path string
	inode
	mode uint32
}

// delay keeps d searchable if need be, and notes its mode for finishLate.
func (r *run) delay(d *dir, want attrs, now stat) attrs {
	if r.super || want.Mode&0o100 != 0 {
		return want
	}
	r.mu.Lock()
	r.late = append(r.late, lateMode{d.rel, now.inode, want.Mode & 0o7777})
	r.mu.Unlock()
	a := *want.Attr
	a.Mode |= 0o100
	return attrs{&a, want.xattrs}
}

// finishLate sets the modes that were put off; subdirectories come first, as
// they were finished first.
func (r *run) finishLate() {
	for _, l := range r.late {
		fd, err := openDirPath(r.root, l.path, unix.O_PATH)
		if err == nil {
			h := handle(fd)
			var st stat
			if st, err = h.stat(); err == nil && st.inode == l.inode {
				err = h.chmod(l.mode)
			}
			h.close()
		}
		if err != nil {
			r.problem(l.path, fmt.Errorf("mode: %w", err))
		}
	}
}

// removeTemps removes what killed runs left in d and no file took over. What
// another run is still writing is locked, and stays; and so does all, for the next
// run, where this one has not come to every file.
func (r *run) removeTemps(d *dir) {
	if !d.walked || r.ctx.Err() != nil {
		return
	}
	for _, name := range d.temps {
		st, err := lstatat(d.fd, name)
		if err != nil || st.kind == tree.Dir {
			continue
		}
		if _, err := d.node.Lookup(context.Background(), name); err == nil {
			continue // the snapshot itself has a file of that name
		}
		if st.kind == tree.File {
			if fd, err := openat(d.fd, name, unix.O_RDONLY|fileFlags, 0); err == nil {
				err = lockTemp(fd)
				unix.Close(fd)
				if err == unix.EWOULDBLOCK {
					continue
				}
			}
		}
		_ = unix.Unlinkat(d.fd, name, 0) // a leftover that stays is no problem of this restore
	}
}
