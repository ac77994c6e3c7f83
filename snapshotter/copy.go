package snapshotter

import (
	"context"
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo"
)

// CopyOptions of a Copier.
type CopyOptions struct {
	Workers  int                           // 0: one for each core
	Progress *CopyProgress                 // may be nil
	Logf     func(format string, a ...any) // what went on; may be nil
}

// CopyProgress counts while a Copier works; it may be read at any time.
type CopyProgress struct {
	Progress                       // of trees that are cut anew; ReadBytes are of the source
	Packs    repo.PackCopyProgress // of trees that are copied as they are
}

// Done is how many bytes of the source were copied or found to be there.
func (p *CopyProgress) Done() uint64 { return p.ReadBytes.Load() + p.Packs.Bytes.Load() }

// A Copier copies snapshots from one repository into another. Where both have the
// same secrets and splitter it copies pages and chunks as they are
// (repo.PackCopier); otherwise it cuts files anew and writes new pages.
//
// It reads the stored pages, not nodes: these do not tell all that is stored. A
// copy says of every name what the original says, unknown fields, lost and absent
// extents and the witness included, so that it serves the original's host as the
// snapshot before the next one.
//
// What did not change since a snapshot that has a copy is neither read nor cut: a
// directory whose pages are the same, a file whose recipe is, and in a file that
// changed the chunks around the changes. That cannot change the result: equal
// trees are equal pages, whatever was copied before.
//
// It is for one goroutine at a time.
type Copier struct {
	src, dst *repo.Repo
	opt      CopyOptions
	packs    *repo.PackCopier // nil where the secrets differ

	// Of these copies, and of what the memo has, every chunk lies in these packs.
	leaned []pack.Name
	sound  map[repo.ID]struct{}
	memo   *memo
	open   bool // a session added to it that has not committed
}

// NewCopier returns a Copier. Both repositories must be readable.
func NewCopier(src, dst *repo.Repo, opt CopyOptions) *Copier {
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	if opt.Progress == nil {
		opt.Progress = &CopyProgress{}
	}
	c := &Copier{src: src, dst: dst, opt: opt, open: true}
	if packs, ok := repo.NewPackCopier(src, dst, &opt.Progress.Packs); ok {
		c.packs = packs
	}
	return c
}

// AsIs reports whether trees are copied as they are.
func (c *Copier) AsIs() bool { return c.packs != nil }

// CopyJob is a snapshot to be copied.
type CopyJob struct {
	Snapshot *repo.Snapshot // of the source

	// Near is a snapshot of the source that resembles it and has a copy; nil for
	// none. What both share is not read again.
	Near, NearCopy *repo.Snapshot

	// Of the copy's record: copies of what the original names. Without a Parent
	// it has none; without a Repairs it names what the original names, for it must
	// be known as one that stands in for another.
	Parent, Repairs *repo.ID
}

// Copy copies one snapshot and returns the copy. After an error nothing is
// committed, and what was stored serves the next run. Damage of the source is
// chunk.ErrCorrupt or chunk.ErrMissing, a snapshot that was forgotten meanwhile
// fs.ErrNotExist: those say nothing of other snapshots.
func (c *Copier) Copy(ctx context.Context, j CopyJob) (*repo.Snapshot, error) {
	if err := c.dst.MayWrite(ctx, j.Snapshot.Name); err != nil {
		return nil, err
	}
	rec, err := c.src.CopyRecord(ctx, j.Snapshot)
	if err != nil {
		return nil, err
	}
	rec.Parent = j.Parent
	if j.Repairs != nil {
		rec.Repairs = j.Repairs
	}
	s, err := c.dst.Begin(ctx)
	if err != nil {
		return nil, err
	}
	read := c.opt.Progress.Done()
	if c.packs != nil {
		err = c.packs.Tree(ctx, s, rec.Tree, rec.Witness)
	} else {
		err = c.cutAnew(ctx, s, &j, rec)
	}
	if err != nil {
		s.Abort(ctx)
		return nil, err
	}
	rec.Stats.ReadBytes = c.opt.Progress.Done() - read
	if err := s.Commit(ctx, rec); err != nil {
		return nil, err
	}
	c.committed(s, rec)
	if _, err := c.dst.Index().Merge(ctx); err != nil {
		c.opt.Logf("merging index segments: %v", err)
	}
	return rec, nil
}

func (c *Copier) committed(s *repo.Session, rec *repo.Snapshot) {
	if c.packs != nil {
		c.packs.Committed(s)
		return
	}
	c.leaned, c.open = s.Writer.Leaned(), false
	c.sound[rec.ID] = struct{}{}
}

// cutAnew copies the tree and the witness.
func (c *Copier) cutAnew(ctx context.Context, s *repo.Session, j *CopyJob, rec *repo.Snapshot) error {
	if c.open || !s.Writer.LeanOn(c.leaned) {
		c.leaned, c.sound, c.memo = nil, map[repo.ID]struct{}{}, newMemo()
	}
	c.open = true
	from := &copySource{src: c.src, memo: c.memo}
	from.page = func(id pageID) ([]byte, error) { return c.src.Store().Page(ctx, id) }
	if len(rec.Members) > 0 {
		from.members = map[string]member{}
	}
	u := &run{r: c.dst, opt: Options{Workers: c.opt.Workers, Logf: c.opt.Logf}, w: s.Writer, p: &c.opt.Progress.Progress, from: from}
	var near, witness copied
	if j.Near != nil {
		ok, err := c.holds(ctx, s, j.NearCopy)
		if err != nil {
			return err
		}
		if ok {
			near = copied{j.Near.Tree.ID, j.NearCopy.Tree.ID}
			witness = copied{j.Near.Witness.ID, j.NearCopy.Witness.ID}
		}
	}
	top := newDirJob(nil, nil, u)
	top.ww = nil
	if err := u.work(ctx, top, func(ctx context.Context) error { return u.copyDir(ctx, top, rec.Tree.ID, "", near) }); err != nil {
		return err
	}
	wit, err := u.copyWitness(ctx, rec.Witness.ID, witness)
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	from.setMembers(rec)
	rec.Tree.ID, rec.Witness.ID = top.entry.Root, wit
	u.meta.Flush()
	return u.w.Err()
}

// holds reports whether what a copy refers to may be taken over.
func (c *Copier) holds(ctx context.Context, s *repo.Session, snap *repo.Snapshot) (bool, error) {
	if _, ok := c.sound[snap.ID]; ok {
		return true, nil
	}
	ok, err := c.dst.Holds(ctx, s, snap)
	if ok {
		c.sound[snap.ID] = struct{}{}
	}
	return ok, err
}
