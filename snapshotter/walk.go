package snapshotter

import (
	"context"
	"errors"
	"io/fs"
	"sync"

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
	ww       *tree.WitnessWriter
	entry    tree.Entry // Root, Children, Below
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
		if err == nil {
			err = d.ww.Add(&s.w)
		}
		if err != nil {
			d.u.cancel(err)
		}
	}
	finish := d.closed && len(d.queue) == 0 && !d.finished
	if finish {
		d.finished = true
		err := d.w.Finish(&d.entry)
		if err == nil {
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
			u.problem(problemPath(path, err), err)
			continue
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
	p := pr.find(a.Name)
	d.add(s)
	if a.Kind != tree.Dir && a.Nlink > 1 && u.linked(d, s, path) {
		return nil
	}
	switch a.Kind {
	case tree.File:
		if u.same(a, p) && u.takeOver(ctx, &s.e, p) {
			u.p.Unchanged.Add(1)
			u.p.Files.Add(1)
			u.p.Bytes.Add(uint64(a.Size))
			u.finish(d, s)
			return nil
		}
		return u.send(ctx, &job{d: d, s: s, n: c, path: path, prev: p})
	case tree.Dir:
		if !u.attrs(ctx, s, c, path, p) {
			u.finish(d, s)
			return nil
		}
		sub := newDirJob(d, s, u)
		if take == Shallow {
			sub.close()
			return nil
		}
		var pd *prevDir
		if p != nil && p.e.Kind == tree.Dir {
			pd = &prevDir{p.e.Root, p.w.Root}
		}
		return u.dir(ctx, sub, c, path, pd)
	default:
		u.attrs(ctx, s, c, path, p)
		u.finish(d, s)
		return nil
	}
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

// attrs sets the extended attributes of what is no file; false if it vanished.
func (u *run) attrs(ctx context.Context, s *slot, c tree.Node, path string, p *prevItem) bool {
	if u.same(c.Attr(), p) && u.takeOver(ctx, &s.e, p) {
		return true
	}
	xs, err := c.Xattrs(ctx)
	if err == nil {
		if err = s.e.SetXattrs(xs, u.putPage); err != nil {
			u.cancel(err)
		}
		return true
	}
	s.drop = true
	if !errors.Is(err, fs.ErrNotExist) {
		u.problem(path, err)
	}
	return false
}

// finish makes a slot known, and with it the hard links that wait for it.
func (u *run) finish(d *dirJob, s *slot) {
	if s.e.Nlink > 1 {
		u.linkDone(s)
	}
	d.done(s)
}

// send queues a file for the workers.
func (u *run) send(ctx context.Context, j *job) error {
	u.batch = append(u.batch, j)
	u.batchLen += j.n.Attr().Size
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
