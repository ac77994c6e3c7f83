package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// Batches of files go to one worker together, so that neighbours lie in one
// frame.
const (
	batchFiles = 64
	batchBytes = 4 << 20
)

// slot is an entry of a directory that may not be known yet.
type slot struct {
	e    tree.Entry
	w    tree.Witness
	link *link // of the first name of a file that has several
	done bool
	drop bool // it vanished, or could not be read
}

// dirJob is a directory whose entries are being found out. Entries are written
// in order, as soon as all before them are known.
type dirJob struct {
	u      *run
	parent *dirJob
	slot   *slot // in parent

	mu       sync.Mutex
	queue    []*slot
	closed   bool // no more entries come
	finished bool
	w        *tree.DirWriter
	ww       *tree.WitnessWriter // nil in a copy, whose witness is copied by itself
	entry    tree.Entry          // Root, Children, Below
	witness  chunk.ID
}

func newDirJob(parent *dirJob, s *slot, u *run) *dirJob {
	return &dirJob{u: u, parent: parent, slot: s, w: tree.NewDirWriter(u.putPage), ww: tree.NewWitnessWriter(u.putPage)}
}

func (d *dirJob) add(s *slot) {
	d.mu.Lock()
	d.queue = append(d.queue, s)
	d.mu.Unlock()
}

// maxPending bounds the entries of a directory that wait for one before them.
const maxPending = 1 << 16

// throttle waits while too many entries wait. The batch that holds what they
// wait for must not stay behind.
func (d *dirJob) throttle(ctx context.Context) error {
	for {
		d.mu.Lock()
		n := len(d.queue)
		d.mu.Unlock()
		if n < maxPending {
			return nil
		}
		if err := d.u.sendBatch(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// done says that a slot is known, and writes what can be written.
func (d *dirJob) done(s *slot) {
	d.mu.Lock()
	s.done = true
	d.drain()
}

// close says that no more entries come.
func (d *dirJob) close() {
	d.mu.Lock()
	d.closed = true
	d.drain()
}

// drain is called with d.mu held and releases it.
func (d *dirJob) drain() {
	for len(d.queue) > 0 && d.queue[0].done {
		s := d.queue[0]
		d.queue[0] = nil
		d.queue = d.queue[1:]
		if s.drop {
			continue
		}
		err := d.w.Add(&s.e)
		if err == nil && d.ww != nil {
			err = d.ww.Add(&s.w)
		}
		switch {
		case err == nil:
		case d.u.w.Err() != nil:
			d.u.cancel(d.u.w.Err())
		case d.u.from != nil:
			// A copy is whole, or is none.
			d.u.cancel(fmt.Errorf("%q: %w: %w", s.e.Name, err, chunk.ErrCorrupt))
		default:
			d.u.problem(s.e.Name, err) // one entry that cannot be stored
		}
	}
	finish := d.closed && len(d.queue) == 0 && !d.finished
	if finish {
		d.finished = true
		err := d.w.Finish(&d.entry)
		if err == nil && d.ww != nil {
			d.witness, err = d.ww.Finish()
		}
		if err != nil {
			d.u.cancel(err)
		}
	}
	d.mu.Unlock()
	if finish && d.parent != nil {
		e := &d.slot.e
		e.Root, e.Children, e.Below = d.entry.Root, d.entry.Children, d.entry.Below
		d.slot.w.Root = d.witness
		d.u.p.Dirs.Add(1)
		d.parent.done(d.slot)
	}
}

// dir walks one directory. Trouble with it is recorded; an error ends the run.
func (u *run) dir(ctx context.Context, d *dirJob, n tree.Node, path string, prev *prevDir) error {
	defer d.close()
	pr := u.readPrev(ctx, prev)
	defer pr.close()
	for c, err := range n.Entries(ctx, 0) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if at := problemPath(path, err); at != path || !errors.Is(err, fs.ErrNotExist) {
				u.problem(at, err) // a directory that is gone has no entries
			}
			continue
		}
		if err := d.throttle(ctx); err != nil {
			return err
		}
		if err := u.child(ctx, d, c, join(path, c.Attr().Name), pr); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

// problemPath adds to a directory's path the name that the error is about.
func problemPath(path string, err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) && tree.ValidName(pe.Path) {
		return join(path, pe.Path)
	}
	return path
}

// unwrapPath returns err such that unwrapping it leaves out its path.
func unwrapPath(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe
	}
	return &fs.PathError{Err: err}
}

func (u *run) child(ctx context.Context, d *dirJob, c tree.Node, path string, pr *prevReader) error {
	a := c.Attr()
	take := Whole
	if u.opt.Filter != nil {
		take = u.opt.Filter(path, a)
	}
	if take == Skip {
		return nil
	}
	s := &slot{}
	setAttr(s, a)
	j := &job{d: d, s: s, n: c, path: path, prev: pr.find(a.Name), bare: take == Bare}
	d.add(s)
	if a.Kind == tree.Dir {
		return u.subdir(ctx, j, take)
	}
	if a.Nlink > 1 && u.linked(j) {
		return nil
	}
	if a.Kind != tree.File {
		u.special(ctx, j)
		return nil
	}
	if j.bare {
		u.bare(ctx, j)
		return nil
	}
	if u.same(a, j.prev) && u.takeOver(ctx, &s.e, j.prev) {
		u.p.Unchanged.Add(1)
		u.p.Files.Add(1)
		u.p.Bytes.Add(uint64(a.Size))
		u.finish(ctx, j, u.again)
		return nil
	}
	return u.send(ctx, j)
}

// again sends a later name of a file to the workers after all.
func (u *run) again(ctx context.Context, j *job) {
	if err := u.send(ctx, j); err != nil {
		u.cancel(err)
	}
}

func (u *run) subdir(ctx context.Context, j *job, take Take) error {
	if !u.attrs(ctx, j) {
		j.d.done(j.s)
		return nil
	}
	sub := newDirJob(j.d, j.s, u)
	if take == Shallow {
		sub.close()
		return nil
	}
	var pd *prevDir
	if p := j.prev; p != nil && p.e.Kind == tree.Dir {
		pd = &prevDir{p.e.Root, p.w.Root}
	}
	return u.dir(ctx, sub, j.n, j.path, pd)
}

// special does what is neither file nor directory.
func (u *run) special(ctx context.Context, j *job) {
	u.attrs(ctx, j)
	u.finish(ctx, j, u.special)
}

// bare does a file of which only name and attributes are kept.
func (u *run) bare(ctx context.Context, j *job) {
	e := &j.s.e
	rw := tree.NewRecipeWriter(u.putPage)
	var err error
	if e.Size > maxFile {
		err = syscall.EFBIG
	} else if e.Size > 0 {
		err = rw.Add(tree.Extent{Len: e.Size, Kind: tree.Absent, End: tree.EndFile})
	}
	if err == nil {
		err = rw.Finish(e)
	}
	switch {
	case err != nil && u.w.Err() != nil:
		u.cancel(u.w.Err())
	case err != nil:
		j.s.drop = true
		u.problem(j.path, err)
	default:
		u.attrs(ctx, j)
	}
	if !j.s.drop {
		u.p.Files.Add(1)
		u.p.Bytes.Add(uint64(e.Size))
	}
	u.finish(ctx, j, u.bare)
}

// structural returns the extended attributes that say who may do what with a
// file. Others say what somebody wrote down.
func structural(xs []tree.Xattr) []tree.Xattr {
	var keep []tree.Xattr
	for _, x := range xs {
		if x.Name == "security.capability" || strings.HasPrefix(x.Name, "system.posix_acl_") {
			keep = append(keep, x)
		}
	}
	return keep
}

func setAttr(s *slot, a *tree.Attr) {
	s.e.Attr = *a
	s.w = tree.Witness{Name: a.Name, Ino: a.Ino, Ctime: a.Ctime, Dev: a.Dev}
	if a.Kind != tree.File {
		s.e.Size, s.e.Allocated = 0, 0
	}
	if a.Kind == tree.Dir {
		s.e.Nlink = 1
	}
}

// attrs sets the extended attributes of what is not read; false if it vanished.
func (u *run) attrs(ctx context.Context, j *job) bool {
	s, path := j.s, j.path
	if !j.bare && u.same(j.n.Attr(), j.prev) && u.takeOver(ctx, &s.e, j.prev) {
		return true
	}
	xs, err := j.n.Xattrs(ctx)
	if err == nil {
		if j.bare {
			xs = structural(xs)
		}
		err = s.e.SetXattrs(xs, u.putPage)
		switch {
		case err == nil:
		case u.w.Err() != nil:
			u.cancel(u.w.Err())
		default:
			u.problem(path, err) // kept, without its attributes
		}
		return true
	}
	s.drop = true
	// What vanishes is no problem, unless it is what was asked for.
	if !errors.Is(err, fs.ErrNotExist) || slices.Contains(u.asked, path) {
		u.problem(path, err)
	}
	return false
}

// send queues a file for the workers.
func (u *run) send(ctx context.Context, j *job) error {
	u.batch = append(u.batch, j)
	u.batchLen += j.s.e.Size
	if len(u.batch) < batchFiles && u.batchLen < batchBytes {
		return nil
	}
	return u.sendBatch(ctx)
}

func (u *run) sendBatch(ctx context.Context) error {
	if len(u.batch) == 0 {
		return nil
	}
	b := u.batch
	u.batch, u.batchLen = nil, 0
	select {
	case u.jobs <- b:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
