package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// run is one snapshot being made.
type run struct {
	r   *repo.Repo
	opt Options
	w   *chunkstore.Writer
	p   *Progress

	metaMu sync.Mutex
	meta   *chunkstore.Stream

	local    *localWitness
	from     *copySource // of a copy; nil: live nodes are read
	prevTime tree.Time   // racily clean from here on; zero without a parent
	jobs     chan []*job
	batch    []*job
	batchLen int64

	linkMu sync.Mutex
	links  map[inode]*link

	cancel context.CancelCauseFunc
	asked  []string // the snapshotted paths, from the root

	probMu   sync.Mutex
	problems []string
	changed  uint64
}

// inode is a file by its names. Names of which the contents are left out are a
// file of their own.
type inode struct {
	dev, ino uint64
	bare     bool
}

// Run makes a snapshot of src, whose children are what it holds; paths is what
// the record says they are. A snapshot whose sources could not all be read is
// committed and comes with ErrPartial. After any other error nothing is
// committed, and what was stored serves the next run.
func Run(ctx context.Context, r *repo.Repo, src tree.Node, paths []string, opt Options) (*repo.Snapshot, error) {
	if err := repo.CheckName(opt.Name); err != nil {
		return nil, err
	}
	start := opt.Now()
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	if opt.Warnf == nil {
		opt.Warnf = opt.Logf
	}
	if err := r.MayWrite(ctx, opt.Name); err != nil {
		return nil, err
	}
	snaps, err := r.Snapshots(ctx)
	if err != nil {
		opt.Warnf("%v", err) // damaged records are no reason to make no new one
	}
	if err := checkLabels(snaps, &opt); err != nil {
		return nil, err
	}
	if opt.Label != "" && r.WriteOnly() {
		opt.Warnf("this credential reads no snapshots: whether another one has the label %q is not known", opt.Label)
	}
	s, err := r.Begin(ctx)
	if err != nil {
		return nil, err
	}
	u := &run{r: r, opt: opt, w: s.Writer, p: opt.Progress, links: map[inode]*link{}}
	if u.p == nil {
		u.p = &Progress{}
	}
	rec := &repo.Snapshot{Name: opt.Name, Label: opt.Label, Note: opt.Note, Tags: opt.Tags, Time: start.UTC(), Host: opt.Host,
		Program: opt.Program, Exclude: opt.Exclude, Mode: opt.Mode, Data: opt.Data}
	for _, p := range paths {
		u.asked = append(u.asked, strings.TrimPrefix(p, "/"))
		rec.Paths = append(rec.Paths, repo.Path(p))
	}
	var parent *repo.Snapshot
	if u.local = openLocal(r, rec, &opt); u.local != nil {
		parent = u.local.parent()
	} else if !opt.NoParent {
		parent = findParent(r, snaps, rec)
	}
	err = u.walk(ctx, src, parent, rec)
	if err == nil && opt.Finish != nil {
		err = opt.Finish(ctx, rec)
	}
	if err != nil {
		s.Abort(ctx)
		u.local.close(nil)
		return nil, err
	}
	rec.End = opt.Now().UTC()
	rec.Stats = repo.Stats{ReadBytes: u.p.ReadBytes.Load(), New: u.p.New.Load(), Modified: u.p.Modified.Load(), Unchanged: u.p.Unchanged.Load()}
	if err := s.Commit(ctx, rec); err != nil {
		u.local.close(nil)
		return nil, err
	}
	u.local.close(rec)
	if _, err := r.Index().Merge(ctx); err != nil {
		opt.Logf("merging index segments: %v", err)
	}
	if rec.Unread > 0 {
		return rec, fmt.Errorf("%d paths could not be read: %w", rec.Unread, ErrPartial)
	}
	return rec, nil
}

func checkLabels(snaps []*repo.Snapshot, opt *Options) error {
	if opt.Label != "" {
		if err := repo.CheckLabel(opt.Label); err != nil {
			return err
		}
	}
	for _, t := range opt.Tags {
		if err := repo.CheckLabel(t); err != nil {
			return err
		}
	}
	for _, s := range snaps {
		if opt.Label != "" && s.Name == opt.Name && s.Label == opt.Label {
			return fmt.Errorf("snapshot %s/%s exists already (%s): choose another --label", s.Name, s.Label, s.ID)
		}
	}
	return nil
}

// findParent returns the newest snapshot of the same name and paths, or of the
// same name; one that has the same parts of its sources. Others may write under that name, too, and say of every file what it
// holds as long as it does not change: they are left out if they are not trusted.
func findParent(r *repo.Repo, snaps []*repo.Snapshot, rec *repo.Snapshot) *repo.Snapshot {
	var same, named *repo.Snapshot
	for _, s := range snaps {
		if s.Name != rec.Name || s.ModeName() != rec.ModeName() || !slices.Equal(s.Data, rec.Data) || s.Tree.IsZero() || s.Witness.IsZero() || !r.Trusts(s) {
			continue
		}
		named = s
		if slices.Equal(s.Paths, rec.Paths) {
			same = s
		}
	}
	if same != nil {
		return same
	}
	return named
}

// walk stores the tree and sets what the record says of it.
func (u *run) walk(ctx context.Context, src tree.Node, parent *repo.Snapshot, rec *repo.Snapshot) error {
	prev := u.openPrev(ctx, parent, rec)
	top := newDirJob(nil, nil, u)
	if err := u.work(ctx, top, func(ctx context.Context) error { return u.dir(ctx, top, src, "", prev) }); err != nil {
		return err
	}
	if err := u.root(ctx, top, src, rec); err != nil {
		return err
	}
	u.meta.Flush()
	if u.changed > 0 {
		rec.Changed = u.changed
	}
	rec.Unread, rec.Problem = u.p.Unread.Load(), u.problems
	return u.w.Err()
}

// work walks, which makes top, with workers beside it.
func (u *run) work(ctx context.Context, top *dirJob, walk func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	u.cancel = cancel
	u.meta = u.w.Stream(pack.Meta)
	u.jobs = make(chan []*job, 2*u.opt.workers())
	var wg sync.WaitGroup
	for range u.opt.workers() {
		wk, err := u.newWorker()
		if err != nil {
			close(u.jobs)
			return err
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			wk.loop(ctx)
		}()
	}
	err := walk(ctx)
	u.sendBatch(ctx)
	close(u.jobs)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	if !top.finished {
		return errors.New("the walk ended before its root was complete") // never happens
	}
	return nil
}

// root writes the two root pages.
func (u *run) root(ctx context.Context, top *dirJob, src tree.Node, rec *repo.Snapshot) error {
	e := top.entry
	e.Attr = *src.Attr()
	e.Name, e.Size, e.Allocated, e.Nlink = tree.RootName, 0, 0, 1
	rec.Totals = e.Below
	xs, err := src.Xattrs(ctx)
	if u.opt.Mode == Dataless {
		xs = structural(xs)
	}
	if err != nil {
		u.problem("", err)
	} else if err := e.SetXattrs(xs, u.putPage); err != nil {
		return err
	}
	dw := tree.NewDirWriter(u.putPage)
	if err := dw.Add(&e); err != nil {
		return err
	}
	var page tree.Entry
	if err := dw.Finish(&page); err != nil {
		return err
	}
	ww := tree.NewWitnessWriter(u.putPage)
	a := src.Attr()
	if err := ww.Add(&tree.Witness{Name: tree.RootName, Ino: a.Ino, Ctime: a.Ctime, Dev: a.Dev, Root: top.witness}); err != nil {
		return err
	}
	wit, err := ww.Finish()
	rec.Tree, rec.Witness = repo.PageID{ID: page.Root}, repo.PageID{ID: wit}
	return err
}

// putPage stores a page; it serves all goroutines.
func (u *run) putPage(p []byte) (chunk.ID, error) {
	id := u.r.SecretKeys().Tree.Sum(p)
	u.local.keep(id, p)
	u.metaMu.Lock()
	defer u.metaMu.Unlock()
	_, err := u.meta.Put(id, p)
	return id, err
}

// problem records a source that could not be read.
func (u *run) problem(path string, err error) {
	u.p.Unread.Add(1)
	if u.opt.Problem != nil {
		u.opt.Problem(path, err)
	}
	u.probMu.Lock()
	defer u.probMu.Unlock()
	if len(u.problems) < maxProblems {
		u.problems = append(u.problems, fmt.Sprintf("%q: %v", path, errors.Unwrap(unwrapPath(err))))
	}
}

func (u *run) countChanged() {
	u.probMu.Lock()
	u.changed++
	u.probMu.Unlock()
}
