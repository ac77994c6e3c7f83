package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// file brings a regular file's contents and attributes under its name.
func (w *worker) file(ctx context.Context, j *job, old *stat, h handle, o outcome) (outcome, error) {
	src, err := openContent(ctx, j.node)
	if err != nil {
		return o, err
	}
	defer src.close()
	t := &w.t
	*t = transfer{ctx: ctx, w: w, src: src, seed: -1, out: -1, dry: w.r.opt.DryRun,
		queue: t.queue[:0], ids: t.ids[:0], block: t.block[:0]}
	if h >= 0 {
		direct := w.r.opt.InPlace && old.nlink == 1
		seed, err := w.openSeed(j, h, *old, direct && !t.dry)
		if err != nil && direct && !t.dry {
			return o, err
		}
		if err == nil {
			defer unix.Close(seed)
			t.seed, t.seedSize, t.inPlace = seed, old.size, direct
			if direct && !t.dry {
				t.out = seed
				err = w.inPlace(j, t, *old, &o)
				return o, err
			}
		}
	}
	tmp := &temp{r: w.r, d: j.d, fd: -1}
	defer tmp.drop()
	if j.adopt && !t.dry && w.r.opt.Sum != nil && tmp.adopt(tempFor(j.node.Attr())) {
		st, err := handle(tmp.fd).stat()
		if err != nil {
			return o, err
		}
		t.seed, t.seedSize, t.inPlace, t.out = tmp.fd, st.size, true, tmp.fd
	}
	t.make = func() (int, error) { return tmp.make(tempFor(j.node.Attr())) }
	if err := t.run(); err != nil {
		return o, err
	}
	o.BytesRead, o.BytesWrite = t.fetched, t.written
	if t.dry {
		if !t.differs {
			return w.unchanged(ctx, j, h, *old, o)
		}
		return o, nil
	}
	o.sum = t.hash.Sum(nil)
	if tmp.fd < 0 { // nothing differed
		return w.unchanged(ctx, j, h, *old, o)
	}
	return w.commit(ctx, j, tmp, old, o)
}

// unchanged finishes a file whose contents turned out to be right.
func (w *worker) unchanged(ctx context.Context, j *job, h handle, old stat, o outcome) (outcome, error) {
	want, err := attrsOf(ctx, j.node)
	if err != nil {
		return o, err
	}
	sure := w.r.mayShare(j, old)
	switch {
	case sure && !w.r.differs(h, want, old):
		o.Op, o.inode = Keep, old.inode
		return o, nil
	case old.nlink == 1:
		m, err := w.meta(h, want, old, o.sum)
		m.BytesRead = o.BytesRead
		return m, err
	case w.r.opt.DryRun:
		o.BytesWrite = old.size
		return o, nil
	}
	return w.copyOf(ctx, j, old, o)
}

// copyOf puts a copy in the place of a file that has other names, which must
// keep what they have.
func (w *worker) copyOf(ctx context.Context, j *job, old stat, o outcome) (outcome, error) {
	t := &w.t
	tmp := &temp{r: w.r, d: j.d, fd: -1}
	defer tmp.drop()
	fd, err := tmp.make(tempFor(j.node.Attr()))
	if err != nil {
		return o, err
	}
	if err := copyRange(fd, t.seed, old.size, w.buffer(&w.old, blockSize)); err != nil {
		return o, err
	}
	if err := unix.Ftruncate(fd, old.size); err != nil {
		return o, err
	}
	o.BytesWrite = old.size
	t.out = fd
	return w.commit(ctx, j, tmp, &old, o)
}

// commit gives the finished temporary file its attributes and its name.
func (w *worker) commit(ctx context.Context, j *job, tmp *temp, old *stat, o outcome) (outcome, error) {
	want, err := attrsOf(ctx, j.node)
	if err != nil {
		return o, err
	}
	h := handle(tmp.fd)
	// Attributes that the target cannot keep cost the file nothing else: it
	// gets its name, and then the error is told.
	if o.soft = w.r.apply(h, want); isFull(o.soft) {
		return o, o.soft
	}
	if old != nil || w.t.holes || w.t.inPlace {
		// What was there must not be lost, and a size set before its data
		// must not pass for a finished file, if the power goes now.
		if err := unix.Fsync(tmp.fd); err != nil {
			return o, fmt.Errorf("sync: %w", err)
		}
	}
	if err := w.verify(ctx, tmp.fd, o.sum); err != nil {
		return o, err
	}
	st, err := h.stat()
	if err != nil {
		return o, err
	}
	o.inode = st.inode
	if err := w.r.rename(j, tmp.name, old); err != nil {
		return o, err
	}
	tmp.name = ""
	return o, nil
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// verify reads the file back, from the disk where the system lets us, and
// compares it with what was meant.
func (w *worker) verify(ctx context.Context, fd int, want []byte) error {
	if !w.r.opt.Verify {
		return nil
	}
	if err := unix.Fdatasync(fd); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	got, err := hashFile(ctx, fd, w.hash, w.buffer(&w.old, blockSize))
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("reads back other bytes than were written: check the disk and its cables: %w", unix.EIO)
	}
	return nil
}

// openSeed opens the file that h holds, to read or also to write.
func (w *worker) openSeed(j *job, h handle, st stat, write bool) (int, error) {
	flags := unix.O_RDONLY | unix.O_NOATIME
	if write {
		flags = unix.O_RDWR
	}
	fd, err := openat(j.d.fd, j.name, flags|fileFlags, 0)
	if err == unix.EPERM && !write { // only the owner may leave the access time
		fd, err = openat(j.d.fd, j.name, unix.O_RDONLY|fileFlags, 0)
	}
	if err == unix.EACCES && st.nlink == 1 && !w.r.opt.DryRun {
		if h.chmod(st.mode&0o777|0o600) == nil { // ours, and read-only until now
			fd, err = openat(j.d.fd, j.name, flags|fileFlags, 0)
		}
	}
	if err != nil {
		return -1, err
	}
	now, err := handle(fd).stat()
	if err == nil && (now.inode != st.inode || now.kind != tree.File || write && now.nlink != 1) {
		err = errors.New("changed while it was being restored: run the restore again")
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// inPlace rewrites what differs within the file.
func (w *worker) inPlace(j *job, t *transfer, old stat, o *outcome) error {
	// Nothing may be written if the contents cannot all be had.
	if err := t.src.each(func(tree.Extent) error { return nil }); err != nil {
		return err
	}
	h := handle(t.out)
	if old.mode&0o6000 != 0 { // no foreign contents under a setuid bit
		if err := h.chmod(old.mode & 0o777); err != nil {
			return err
		}
	}
	want, err := attrsOf(t.ctx, j.node)
	if err != nil {
		return err
	}
	changed := w.r.differs(h, want, old)
	if err := t.run(); err != nil {
		return err
	}
	o.inode, o.sum = old.inode, t.hash.Sum(nil)
	o.BytesRead, o.BytesWrite = t.fetched, t.written
	switch {
	case t.differs:
		// The time says that the file is finished, so its data goes first.
		if err := unix.Fdatasync(t.out); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	case changed:
		o.Op = Meta
	default:
		o.Op = Keep
	}
	o.soft = w.r.apply(h, want)
	return w.verify(t.ctx, t.out, o.sum)
}

// temp is a temporary file until it gets its name.
type temp struct {
	r    *run
	d    *dir
	fd   int
	name string // "" once it has been renamed
}

// make creates the file, empty. Someone else's file of that name is not
// touched; another name is taken.
func (t *temp) make(name string) (int, error) {
	if t.fd >= 0 {
		return t.fd, nil
	}
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := openat(t.d.fd, name, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		name = randomTemp()
		fd, err = openat(t.d.fd, name, flags, 0o600)
	}
	if err != nil {
		return -1, err
	}
	t.fd, t.name = fd, name
	_ = lockTemp(fd) // where files cannot be locked, leftovers count as such
	return fd, nil
}

// adopt takes over what a killed run left of the same file, if it is ours
// alone.
func (t *temp) adopt(name string) bool {
	fd, err := openat(t.d.fd, name, unix.O_RDWR|fileFlags, 0)
	if err != nil {
		return false
	}
	st, err := handle(fd).stat()
	if err == nil && st.kind == tree.File && st.nlink == 1 && st.uid == uint32(os.Geteuid()) &&
		st.mode&^0o600 == 0 && lockTemp(fd) == nil {
		t.fd, t.name = fd, name
		return true
	}
	unix.Close(fd)
	return false
}

// drop closes the file, and removes it unless it was renamed.
func (t *temp) drop() {
	if t.fd < 0 {
		return
	}
	if t.name != "" {
		_ = unix.Unlinkat(t.d.fd, t.name, 0)
	}
	unix.Close(t.fd)
	t.fd = -1
}
