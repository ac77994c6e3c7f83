package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo"
)

// maxPause is how long is waited at most before a round that failed is tried again.
const maxPause = time.Hour

// follow copies what is new, again and again, until it is interrupted. A snapshot
// that is damaged is tried again after maxPause, and holds up nothing else.
func (k *copying) follow(ctx context.Context) error {
	k.a.sayf("following %s into %s; Ctrl-C ends it", k.a.repoPath, k.f.to)
	var last error
	pause := k.f.interval
	for {
		err := k.round(ctx)
		if ctx.Err() == nil {
			last = err // what was interrupted is whole, as far as it came
		}
		switch {
		case ctx.Err() != nil:
		case err == nil, errors.Is(err, chunk.ErrCorrupt), errors.Is(err, chunk.ErrMissing):
			pause = k.f.interval
		default:
			pause = min(2*pause, max(maxPause, k.f.interval))
		}
		if last != nil && ctx.Err() == nil {
			k.a.errorf("%v; trying again in %s", last, pause)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			if last == nil {
				last = k.damaged()
			}
			return last
		}
	}
}

// firstMarks says of a new copy what was said of the original. Its tags are in its
// record.
func (k *copying) firstMarks(ctx context.Context, s, rec *repo.Snapshot) error {
	if s.MarkErr != nil {
		k.a.warnf("%s: %v; the copy is not pinned and does not expire", snapshotName(s), s.MarkErr)
		return nil
	}
	_, err := k.mark(ctx, rec.ID, missingMarks(s, &repo.Snapshot{Tags: s.Tags}))
	if errors.Is(err, seal.ErrNoKey) {
		if !k.unmarked {
			k.a.warnf("pins and expiries are not copied: %v", err)
		}
		k.unmarked = true
		return nil
	}
	return err
}

// missingMarks returns what must be said of a copy for it to be marked as the
// original.
func missingMarks(s, copy *repo.Snapshot) []repo.Mark {
	var ms []repo.Mark
	for _, t := range s.Tags {
		if !slices.Contains(copy.Tags, t) {
			ms = append(ms, repo.Mark{Op: repo.MarkTag, Value: t})
		}
	}
	for _, t := range copy.Tags {
		if !slices.Contains(s.Tags, t) {
			ms = append(ms, repo.Mark{Op: repo.MarkUntag, Value: t})
		}
	}
	switch {
	case s.Pinned && !copy.Pinned:
		ms = append(ms, repo.Mark{Op: repo.MarkPin})
	case !s.Pinned && copy.Pinned:
		ms = append(ms, repo.Mark{Op: repo.MarkUnpin})
	}
	if !s.Expires.Equal(copy.Expires) {
		ms = append(ms, repo.Mark{Op: repo.MarkExpire, Until: s.Expires})
	}
	return ms
}

func (k *copying) mark(ctx context.Context, id repo.ID, ms []repo.Mark) (int, error) {
	for i, m := range ms {
		if err := k.dst.AddMark(ctx, id, m); err != nil {
			return i, err
		}
	}
	return len(ms), nil
}

// allMarks makes the marks of the chosen snapshots' copies those of the originals.
func (k *copying) allMarks(ctx context.Context, b *bothSides, res *copyResult) error {
	// Copies that were just made are listed with what was said of them.
	dst, err := k.dst.Snapshots(ctx)
	if err != nil && len(dst) == 0 {
		return err
	}
	byID := map[repo.ID]*repo.Snapshot{}
	for _, c := range dst {
		byID[c.ID] = c
	}
	for _, s := range b.chosen {
		was := k.copyOf(b, s)
		if was == nil || byID[was.ID] == nil || was.Origin == nil && s.Origin != nil {
			continue // the original's marks are not made those of its copy
		}
		c := byID[was.ID]
		if s.MarkErr != nil || c.MarkErr != nil {
			k.warn("%s: %v; its copy is left as it is marked", snapshotName(s), errors.Join(s.MarkErr, c.MarkErr))
			continue
		}
		n, err := k.mark(ctx, c.ID, missingMarks(s, c))
		res.marked += n
		if err != nil {
			return fmt.Errorf("%s: the marks of its copy: %w", snapshotName(s), err)
		}
	}
	return nil
}

// gone returns the copies of snapshots that were made in the source and are not
// there any more, and the names of which that would leave no copy.
func (k *copying) gone(b *bothSides) (gone []*repo.Snapshot, emptied []string) {
	here := map[repo.Origin]bool{}
	for _, s := range b.src {
		here[k.src.OriginOf(s)] = true
	}
	left, lose := map[string]int{}, map[string][]*repo.Snapshot{}
	for _, c := range b.dst {
		if c.Origin == nil || !k.dst.Trusts(c) || c.Origin.Repo != k.src.Config().Repo || !overlap(k.f.names, []string{c.Name}) {
			continue
		}
		if here[*c.Origin] || c.Pinned || c.MarkErr != nil {
			left[c.Name]++
			continue
		}
		lose[c.Name] = append(lose[c.Name], c)
	}
	for _, name := range slices.Sorted(maps.Keys(lose)) {
		if left[name] == 0 {
			emptied = append(emptied, name)
			continue
		}
		gone = append(gone, lose[name]...)
	}
	return gone, emptied
}

// forgetGone forgets the copies whose originals are forgotten, or tells which with
// --dry-run.
func (k *copying) forgetGone(ctx context.Context, b *bothSides, res *copyResult) error {
	if !b.whole {
		k.warn("nothing is forgotten in %s, as not all of the source can be read", k.f.to)
		return nil
	}
	gone, emptied := k.gone(b)
	var ids []repo.ID
	for _, c := range gone {
		ids = append(ids, c.ID)
	}
	said := "forgotten"
	if k.f.dryRun {
		said = "would be forgotten"
	} else if len(ids) > 0 {
		if _, err := k.dst.Forget(ctx, ids); err != nil {
			return err
		}
	}
	for _, c := range gone {
		k.a.sayf("%s  %s, as its original %s is", snapshotName(c), said, c.Origin.ID.String()[:8])
		if err := k.a.emit("copy-forgotten", object{"id": c.ID.String(), "original": c.Origin.ID.String(), "name": c.Name, "dir": c.Dir}); err != nil {
			return err
		}
	}
	res.forgotten = len(gone)
	if len(emptied) > 0 {
		return fmt.Errorf("%wno original of %s is left, so their copies in %s stay; `cutbank forget -r %s` removes them", errRefused, strings.Join(emptied, ", "), k.f.to, k.f.to)
	}
	return nil
}
