package restore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"strconv"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// job is one name that is no directory. It holds a reference to its directory.
type job struct {
	d      *dir
	name   string
	node   tree.Node
	exists bool   // the directory listing had the name
	adopt  bool   // and a temporary file of this very file
	group  *group // of a file with several names
}

func (j *job) rel() string { return join(j.d.rel, j.name) }

// worker restores what is no directory. Its buffers serve one job at a time.
type worker struct {
	r    *run
	buf  []byte // a block of new contents
	old  []byte // a block of old ones
	same []bool
	hash hash.Hash
	t    transfer
}

func newWorker(r *run) *worker { return &worker{r: r, hash: chunk.NewDigest()} }

// buffer returns *b with n bytes.
func (w *worker) buffer(b *[]byte, n int64) []byte {
	if int64(cap(*b)) < n {
		*b = make([]byte, n, max(n, 64<<10))
	}
	*b = (*b)[:n]
	return *b
}

// outcome is what became of a job.
type outcome struct {
	Action
	inode        // of the name now, if exact
	exact bool   // the name now has the node's contents
	sum   []byte // of the contents, if they were read
	soft  error  // all is in place but for some attributes
}

// do restores one name and tells.
func (w *worker) do(ctx context.Context, j *job) {
	defer w.r.release(j.d)
	if ctx.Err() != nil {
		return
	}
	var o outcome
	var err error
	if j.group != nil {
		o, err = w.linked(ctx, j)
	} else {
		o, err = w.place(ctx, j)
	}
	if err != nil {
		if ctx.Err() == nil || !errors.Is(err, context.Cause(ctx)) && !errors.Is(err, ctx.Err()) {
			w.r.problem(j.rel(), err)
		}
		return
	}
	if o.soft != nil {
		w.r.problem(j.rel(), o.soft)
	}
	o.Path = j.rel()
	var a *tree.Attr
	if o.exact {
		a = j.node.Attr()
	}
	var line *ReceiptLine
	if o.exact && w.r.opt.Receipt != nil {
		line = newLine(j.rel(), a, o.sum)
		if !w.r.super {
			w.actual(j, line)
		}
	}
	w.r.done(o.Action, a, line)
}

// actual puts into the line what an ordinary user could not set.
func (w *worker) actual(j *job, line *ReceiptLine) {
	if st, err := lstatat(j.d.fd, j.name); err == nil {
		line.UID, line.GID, line.Mode = st.uid, st.gid, fmt.Sprintf("%04o", st.mode)
	}
}

// place restores a name by itself: looks, decides, acts.
func (w *worker) place(ctx context.Context, j *job) (outcome, error) {
	a := j.node.Attr()
	if !j.exists || j.d.fd < 0 {
		return w.create(ctx, j, nil, -1)
	}
	fd, err := openat(j.d.fd, j.name, pathFlags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return w.create(ctx, j, nil, -1)
	}
	if err != nil {
		return outcome{}, err
	}
	h := handle(fd)
	defer h.close()
	st, err := h.stat()
	if err != nil {
		return outcome{}, err
	}
	if w.r.leave(a, st) {
		return outcome{Action: Action{Op: Keep}}, nil
	}
	if st.kind != a.Kind {
		return w.create(ctx, j, &st, -1)
	}
	if a.Kind != tree.File {
		return w.special(ctx, j, h, st)
	}
	quick := st.size == a.Size && st.mtime == a.Mtime
	if quick && w.r.opt.Overwrite == IfChanged && !w.r.opt.Verify && w.r.mayShare(j, st) {
		want, err := attrsOf(ctx, j.node)
		if err != nil {
			return outcome{}, err
		}
		if !w.r.differs(h, want, st) {
			return outcome{Action: Action{Op: Keep}, inode: st.inode, exact: true}, nil
		}
		if st.nlink == 1 {
			return w.meta(h, want, st, nil)
		}
	}
	return w.create(ctx, j, &st, h)
}

// leave tells whether the policy leaves what exists untouched.
func (r *run) leave(a *tree.Attr, st stat) bool {
	switch r.opt.Overwrite {
	case Never:
		return true
	case IfNewer:
		return a.Mtime.Compare(st.mtime) <= 0
	}
	return false
}

// mayShare tells whether the target's file may stay the one that j names: it
// has no name that the snapshot does not give it. What other names there are
// cannot be known, but those that another file of the snapshot claims can.
func (r *run) mayShare(j *job, st stat) bool {
	if st.nlink == 1 {
		return true
	}
	if j.group == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k, taken := r.claims[st.inode]
	if taken && k != j.group.key {
		return false
	}
	r.claims[st.inode] = j.group.key
	return st.nlink <= uint64(j.node.Attr().Nlink)
}

// special handles a symlink, FIFO, socket or device whose kind is right.
func (w *worker) special(ctx context.Context, j *job, h handle, st stat) (outcome, error) {
	a := j.node.Attr()
	same := a.Kind != tree.CharDevice && a.Kind != tree.BlockDevice || st.rdev == a.Rdev
	if a.Kind == tree.Symlink {
		target, err := h.readlink()
		same = err == nil && target == a.Target
	}
	if !same || !w.r.mayShare(j, st) {
		return w.create(ctx, j, &st, -1)
	}
	want, err := attrsOf(ctx, j.node)
	if err != nil {
		return outcome{}, err
	}
	if !w.r.differs(h, want, st) {
		return outcome{Action: Action{Op: Keep}, inode: st.inode, exact: true}, nil
	}
	if st.nlink > 1 {
		return w.create(ctx, j, &st, -1)
	}
	return w.meta(h, want, st, nil)
}

// meta corrects attributes of a file that has no other name.
func (w *worker) meta(h handle, want attrs, st stat, sum []byte) (outcome, error) {
	o := outcome{Action: Action{Op: Meta}, inode: st.inode, exact: true, sum: sum}
	if w.r.opt.DryRun {
		return o, nil
	}
	o.soft = w.r.apply(h, want)
	return o, nil
}

// create makes the name what the node is, in the place of old (nil: nothing
// is there). h is old's handle if it is a file to compare with, else -1.
func (w *worker) create(ctx context.Context, j *job, old *stat, h handle) (outcome, error) {
	op := Create
	if old != nil {
		op = Change
	}
	o := outcome{Action: Action{Op: op}, exact: true}
	if old != nil && old.kind == tree.Dir {
		if err := w.r.checkWay(j); err != nil {
			return o, err
		}
	}
	if j.node.Attr().Kind == tree.File {
		return w.file(ctx, j, old, h, o)
	}
	if w.r.opt.DryRun {
		return o, nil
	}
	want, err := attrsOf(ctx, j.node)
	if err != nil {
		return o, err
	}
	tmp := randomTemp()
	if err := makeSpecial(j.d.fd, tmp, j.node.Attr()); err != nil {
		return o, err
	}
	o.inode, o.soft, err = w.dress(j, tmp, want)
	if err == nil {
		err = w.r.rename(j, tmp, old)
	}
	if err != nil {
		_ = unix.Unlinkat(j.d.fd, tmp, 0)
	}
	return o, err
}

// dress gives the special file that was just made as tmp its attributes.
func (w *worker) dress(j *job, tmp string, want attrs) (i inode, soft, err error) {
	fd, err := openat(j.d.fd, tmp, pathFlags, 0)
	if err != nil {
		return i, nil, err
	}
	h := handle(fd)
	defer h.close()
	st, err := h.stat()
	if err != nil {
		return i, nil, err
	}
	if st.kind != want.Kind || st.nlink != 1 {
		return i, nil, fmt.Errorf("another process put its own file in the place of %s", tmp)
	}
	return st.inode, w.r.apply(h, want), nil
}

func makeSpecial(fd int, name string, a *tree.Attr) error {
	switch a.Kind {
	case tree.Symlink:
		return unix.Symlinkat(a.Target, fd, name)
	case tree.FIFO:
		return unix.Mknodat(fd, name, unix.S_IFIFO|0o600, 0)
	case tree.Socket:
		return unix.Mknodat(fd, name, unix.S_IFSOCK|0o600, 0)
	case tree.CharDevice:
		return mknod(fd, name, unix.S_IFCHR|0o600, a.Rdev)
	case tree.BlockDevice:
		return mknod(fd, name, unix.S_IFBLK|0o600, a.Rdev)
	}
	return fmt.Errorf("nodes of %v cannot be restored: a newer cutbank may know them", a.Kind)
}

func mknod(fd int, name string, mode uint32, rdev uint64) error {
	if rdev > 1<<32-1 {
		return fmt.Errorf("device number %#x is refused: Linux has 32 bits for it", rdev)
	}
	err := unix.Mknodat(fd, name, mode, int(rdev))
	if err == unix.EPERM {
		return fmt.Errorf("only root may make device nodes: %w", err)
	}
	return err
}

// rename gives tmp its name. A directory in the way has passed checkWay. Where
// nothing was, a policy that keeps what exists keeps what has come since.
func (r *run) rename(j *job, tmp string, old *stat) error {
	if old != nil && old.kind == tree.Dir {
		if err := r.clearWay(j); err != nil {
			return err
		}
	}
	if old != nil || r.opt.Overwrite != Never && r.opt.Overwrite != IfNewer {
		return unix.Renameat(j.d.fd, tmp, j.d.fd, j.name)
	}
	err := unix.Renameat2(j.d.fd, tmp, j.d.fd, j.name, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // a file system that cannot
		if _, err = lstatat(j.d.fd, j.name); errors.Is(err, fs.ErrNotExist) {
			return unix.Renameat(j.d.fd, tmp, j.d.fd, j.name)
		}
		if err == nil {
			err = unix.EEXIST
		}
	}
	if err == unix.EEXIST {
		return fmt.Errorf("somebody else made it meanwhile, and the overwrite policy keeps it: run the restore again: %w", err)
	}
	return err
}

func randomTemp() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return tempPrefix + hex.EncodeToString(b[:]) + tempSuffix
}

// tempFor is the name under which a's contents wait, so that a later run
// finds them.
func tempFor(a *tree.Attr) string {
	b := append([]byte(a.Name), 0)
	b = strconv.AppendInt(b, a.Size, 10)
	b = append(b, 0)
	b = strconv.AppendInt(b, a.Mtime.Sec, 10)
	b = append(b, 0)
	b = strconv.AppendUint(b, uint64(a.Mtime.Nsec), 10)
	d := chunk.Digest(b)
	return tempPrefix + hex.EncodeToString(d[:8]) + tempSuffix
}
