package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter"
)

// copying is a run of copy.
type copying struct {
	a        *app
	f        *copyFlags
	args     []string
	src, dst *repo.Repo
	c        *snapshotter.Copier
	p        snapshotter.CopyProgress
	total    atomic.Uint64 // bytes to be read, as far as that is known
	copied   atomic.Uint64 // snapshots, for who looks meanwhile
	unmarked bool          // that marks need the owner's key was said
	said     map[string]bool
	failed   map[repo.ID]failure // snapshots that are damaged, until they are tried again
}

// failure is why a snapshot was not copied, and when that was tried.
type failure struct {
	err  error
	when time.Time
}

// warn says something once, however many rounds there are.
func (k *copying) warn(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !k.said[text] {
		k.said[text] = true
		k.a.warnf("%s", text)
	}
}

func newCopying(a *app, f *copyFlags, src, dst *repo.Repo, args []string) *copying {
	k := &copying{a: a, f: f, args: args, src: src, dst: dst, said: map[string]bool{}, failed: map[repo.ID]failure{}}
	k.c = snapshotter.NewCopier(src, dst, snapshotter.CopyOptions{Workers: f.workers, Progress: &k.p, Logf: a.logf})
	return k
}

// bothSides is what both repositories have.
type bothSides struct {
	src, dst []*repo.Snapshot // all, oldest first
	whole    bool             // every record of the source could be read
	chosen   []*repo.Snapshot
	copies   map[repo.Origin]*repo.Snapshot // of all that is in the destination, by what it is
}

// copyOf returns what a snapshot of the source is in the destination; nil if it is
// not there.
func (k *copying) copyOf(b *bothSides, s *repo.Snapshot) *repo.Snapshot {
	return b.copies[k.src.OriginOf(s)]
}

// look reads what both repositories have.
func (k *copying) look(ctx context.Context) (*bothSides, error) {
	list := func(r *repo.Repo, what string) ([]*repo.Snapshot, error, error) {
		// A folder that is not mounted any more must not pass for an empty
		// repository: all would be copied into it, or be taken for forgotten.
		if keys, err := r.Keys(ctx); len(keys) == 0 {
			return nil, nil, fmt.Errorf("%s: %w", what, errors.Join(repo.ErrNoRepo, err))
		}
		if err := r.Sync(ctx); err != nil {
			if !errors.Is(err, chunk.ErrCorrupt) && !errors.Is(err, seal.ErrNoKey) {
				return nil, nil, fmt.Errorf("%s: %w", what, err)
			}
			k.warn("%s: %v; `cutbank verify` tells what it affects", what, err)
		}
		snaps, damage := r.Snapshots(ctx)
		if damage != nil && len(snaps) == 0 {
			return nil, nil, fmt.Errorf("%s: %w", what, damage)
		}
		return snaps, damage, nil
	}
	src, damage, err := list(k.src, "source")
	if err != nil {
		return nil, err
	}
	if damage != nil {
		k.warn("source: %v; what cannot be read is not copied", damage)
	}
	dst, dstDamage, err := list(k.dst, k.f.to)
	if err != nil {
		return nil, err
	}
	if dstDamage != nil {
		k.warn("%s: %v; copies that cannot be read are made anew", k.f.to, dstDamage)
	}
	b := &bothSides{src: src, dst: dst, whole: damage == nil, copies: k.dst.Origins(dst)}
	b.chosen, err = k.choose(src)
	return b, err
}

// choose returns the snapshots that are asked for, oldest first.
func (k *copying) choose(snaps []*repo.Snapshot) ([]*repo.Snapshot, error) {
	if len(k.args) > 0 {
		return pick(snaps, k.args)
	}
	chosen := choose(snaps, k.f.names, k.f.tags)
	if k.f.newest == 0 {
		return chosen, nil
	}
	seen := map[string]int{}
	var newest []*repo.Snapshot
	for _, s := range slices.Backward(chosen) {
		if seen[s.Name]++; seen[s.Name] <= k.f.newest {
			newest = append(newest, s)
		}
	}
	slices.Reverse(newest)
	return newest, nil
}

// copyResult sums up a round.
type copyResult struct {
	copied, skipped, failed, gone int
	forgotten, marked, verified   int
	read, added, stored           uint64
}

// round copies what has no copy yet.
func (k *copying) round(ctx context.Context) error {
	start := now()
	b, err := k.look(ctx)
	if err != nil {
		return err
	}
	res := &copyResult{}
	maps.DeleteFunc(k.failed, func(id repo.ID, _ failure) bool {
		return !slices.ContainsFunc(b.src, func(s *repo.Snapshot) bool { return s.ID == id })
	})
	var wanted []*repo.Snapshot
	taken := map[repo.Origin]bool{}
	for _, s := range b.chosen {
		o := k.src.OriginOf(s)
		switch fail, bad := k.failed[s.ID]; {
		case b.copies[o] != nil, taken[o]:
			res.skipped++
		case bad && now().Sub(fail.when) < maxPause: // it stays damaged until somebody repairs it
		default:
			taken[o] = true
			wanted = append(wanted, s)
		}
	}
	if k.f.dryRun {
		return k.plan(ctx, b, wanted, res)
	}
	err = k.copyAll(ctx, b, wanted, res)
	if err == nil && k.f.marks {
		err = k.allMarks(ctx, b, res)
	}
	if err == nil && k.f.forget {
		err = k.forgetGone(ctx, b, res)
	}
	quiet := k.f.follow && res.copied+res.failed+res.forgotten+res.marked == 0
	if !quiet {
		if serr := k.summary(res, now().Sub(start)); err == nil {
			err = serr
		}
	}
	if err == nil && res.failed > 0 {
		err = k.damaged()
	}
	return err
}

// damaged is the error of the snapshots that are damaged; nil if none is.
func (k *copying) damaged() error {
	for _, f := range k.failed {
		return &wrapped{fmt.Sprintf("%d snapshots could not be copied", len(k.failed)), f.err}
	}
	return nil
}

// plan tells what would be copied.
func (k *copying) plan(ctx context.Context, b *bothSides, wanted []*repo.Snapshot, res *copyResult) error {
	for _, s := range wanted {
		if err := k.a.emit("copy-plan", object{"id": s.ID.String(), "name": s.Name, "dir": s.Dir, "files": s.Totals.Files, "bytes": s.Totals.Bytes}); err != nil {
			return err
		}
	}
	if err := k.a.table(func(w *tabwriter.Writer) {
		if len(wanted) > 0 {
			fmt.Fprintln(w, "ID\tNAME\tTIME\tFILES\tSIZE")
		}
		for _, s := range wanted {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.ID.String()[:8], s.Name, s.Dir, countText(s.Totals.Files), bytesText(s.Totals.Bytes))
		}
	}); err != nil {
		return err
	}
	size, err := k.src.NewBytes(ctx, wanted, k.known(b))
	if err != nil {
		return err
	}
	k.a.sayf("%d snapshots would be copied, with about %s that no copied snapshot has; %d have a copy", len(wanted), bytesText(size), res.skipped)
	var refused error
	if k.f.forget {
		refused = k.forgetGone(ctx, b, res)
		if res.forgotten > 0 || refused == nil {
			k.a.sayf("%d copies would be forgotten", res.forgotten)
		}
	}
	err = k.a.emit("copy", object{"dry_run": true, "copied": len(wanted), "skipped": res.skipped, "failed": 0, "gone": 0, "forgotten": res.forgotten, "marked": 0, "verified": 0,
		"read_bytes": size, "new_bytes": 0, "stored": 0, "seconds": 0})
	return errors.Join(err, refused)
}

// known returns the snapshots of the source that have a copy.
func (k *copying) known(b *bothSides) []*repo.Snapshot {
	var known []*repo.Snapshot
	for _, s := range b.src {
		if k.copyOf(b, s) != nil {
			known = append(known, s)
		}
	}
	return known
}

// copyAll copies snapshots, oldest first. One whose data is damaged is left out,
// with a word.
func (k *copying) copyAll(ctx context.Context, b *bothSides, wanted []*repo.Snapshot, res *copyResult) error {
	if len(wanted) == 0 {
		return nil
	}
	done := k.p.Done()
	k.copied.Store(0)
	k.total.Store(0)
	count, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		if size, err := k.src.NewBytes(count, wanted, k.known(b)); err == nil {
			k.total.Store(size)
		}
	}()
	end := k.a.showProgress("copy", func() status {
		at, total := k.p.Done()-done, k.total.Load()
		if total > 0 {
			at = min(at, total) // some may be read twice
		}
		return status{at, total, fmt.Sprintf("%d of %d snapshots, %s files, %s new", k.copied.Load(), len(wanted), countText(k.p.Files.Load()), bytesText(k.p.NewBytes.Load()+k.p.Packs.Bytes.Load()))}
	}, func() object {
		return object{"snapshots": k.copied.Load(), "snapshots_total": len(wanted)}
	})
	defer end()
	for _, s := range wanted {
		if err := k.one(ctx, b, s, res); err != nil {
			return err
		}
		k.copied.Add(1)
	}
	if k.f.verify && k.c.AsIs() {
		return k.check(ctx, b, wanted, res)
	}
	return nil
}

// one copies one snapshot.
func (k *copying) one(ctx context.Context, b *bothSides, s *repo.Snapshot, res *copyResult) error {
	start := now()
	rec, err := k.c.Copy(ctx, k.job(b, s))
	switch {
	case ctx.Err() != nil && err != nil:
		return ctx.Err()
	case err == nil:
	case k.isGone(ctx, s):
		res.gone++
		delete(k.failed, s.ID)
		k.a.sayf("%s was forgotten while it was copied", snapshotName(s))
		return nil
	case errors.Is(err, chunk.ErrCorrupt), errors.Is(err, chunk.ErrMissing):
		res.failed++
		k.failed[s.ID] = failure{err, now()}
		k.a.errorf("%s is not copied: %v; `cutbank repair` makes of it what can be had", snapshotName(s), err)
		return k.a.emit("copy-failed", object{"id": s.ID.String(), "name": s.Name, "dir": s.Dir, "error": err.Error()})
	default:
		return fmt.Errorf("%s: %w", snapshotName(s), err)
	}
	delete(k.failed, s.ID)
	rec.Dir = s.Dir // as long as nobody lists it
	if other := labelled(b.dst, rec); other != nil {
		k.a.warnf("%s has the label %s/%s too: name the copy by its ID, %s", other.ID.String()[:8], rec.Name, rec.Label, rec.ID.String()[:8])
	}
	b.copies[k.src.OriginOf(s)] = rec
	b.dst = append(b.dst, rec)
	res.copied++
	res.read += rec.Stats.ReadBytes
	res.added += rec.Stats.NewBytes
	res.stored += rec.Stats.Stored
	if err := k.firstMarks(ctx, s, rec); err != nil {
		return err
	}
	compared := k.f.verify && !k.c.AsIs() // the others are checked together
	if compared {
		if err := k.compare(ctx, s, rec); err != nil {
			return err
		}
		res.verified++
	}
	k.a.sayf("%s  %s -> %s  %s read, %s new", snapshotName(s), s.ID.String()[:8], rec.ID.String()[:8], bytesText(rec.Stats.ReadBytes), bytesText(rec.Stats.NewBytes))
	return k.a.emit("copied", object{"id": rec.ID.String(), "original": s.ID.String(), "name": rec.Name, "time": rec.Time, "dir": s.Dir, "files": rec.Totals.Files,
		"bytes": rec.Totals.Bytes, "read_bytes": rec.Stats.ReadBytes, "new_bytes": rec.Stats.NewBytes, "stored": rec.Stats.Stored, "verified": compared, "seconds": now().Sub(start).Seconds()})
}

func labelled(snaps []*repo.Snapshot, rec *repo.Snapshot) *repo.Snapshot {
	for _, s := range snaps {
		if rec.Label != "" && s.Label == rec.Label && s.Name == rec.Name {
			return s
		}
	}
	return nil
}

// isGone reports whether a snapshot is not in the source any more.
func (k *copying) isGone(ctx context.Context, s *repo.Snapshot) bool {
	snaps, err := k.src.Snapshots(ctx)
	return err == nil && !slices.ContainsFunc(snaps, func(x *repo.Snapshot) bool { return x.ID == s.ID })
}

// job says how to copy a snapshot: what is near it, and what it refers to.
func (k *copying) job(b *bothSides, s *repo.Snapshot) snapshotter.CopyJob {
	j := snapshotter.CopyJob{Snapshot: s}
	refers := func(id *repo.ID) *repo.ID {
		if id == nil {
			return nil
		}
		o := repo.Origin{Repo: k.src.Config().Repo, ID: *id}
		for _, x := range b.src {
			if x.ID == *id {
				o = k.src.OriginOf(x)
			}
		}
		if c := b.copies[o]; c != nil {
			return &c.ID
		}
		return nil
	}
	j.Parent, j.Repairs = refers(s.Parent), refers(s.Repairs)
	j.Near, j.NearCopy = k.near(b, s)
	return j
}

// near returns a snapshot of the source that has a copy and is likely to resemble
// another: of the same name, and of the same paths if there is one; the last one
// before it, or else the first one after it.
func (k *copying) near(b *bothSides, s *repo.Snapshot) (best, its *repo.Snapshot) {
	rank, after := 0, false
	for _, x := range b.src {
		if x.ID == s.ID {
			after = true
			continue
		}
		c := k.copyOf(b, x)
		if x.Name != s.Name || c == nil {
			continue
		}
		r := 1
		if slices.Equal(x.Paths, s.Paths) {
			r = 2
		}
		if r > rank || r == rank && !after {
			best, its, rank = x, c, r
		}
	}
	return best, its
}

func (k *copying) summary(res *copyResult, d time.Duration) error {
	k.a.sayf("%d snapshots copied, %d were there already; %s read, %s new, %s stored, took %s", res.copied, res.skipped, bytesText(res.read), bytesText(res.added), bytesText(res.stored), durationText(d))
	if res.forgotten > 0 {
		k.a.sayf("  %d copies forgotten; `cutbank prune -r %s` frees what only they needed", res.forgotten, k.f.to)
	}
	return k.a.emit("copy", object{"dry_run": false, "copied": res.copied, "skipped": res.skipped, "failed": res.failed, "gone": res.gone, "forgotten": res.forgotten,
		"marked": res.marked, "verified": res.verified, "read_bytes": res.read, "new_bytes": res.added, "stored": res.stored, "seconds": d.Seconds()})
}
