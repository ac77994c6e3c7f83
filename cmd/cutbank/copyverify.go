package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// compare compares a copy with its original, byte by byte. What the original
// lacks, the copy must lack.
func (k *copying) compare(ctx context.Context, s, rec *repo.Snapshot) error {
	x, err := snapfs.NewCache(k.src.Store()).Open(ctx, s.Tree.ID)
	if err != nil {
		return err
	}
	y, err := snapfs.NewCache(k.dst.Store()).Open(ctx, rec.Tree.ID)
	if err != nil {
		return fmt.Errorf("the copy %s of %s: %w", rec.ID, snapshotName(s), err)
	}
	bad, differ := failures{}, 0
	for c, err := range diff.Compare(ctx, x, y, diff.Options{Content: true, Holes: true}) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && c.A != nil && c.B != nil {
			same, aerr := alike(ctx, c.A, c.B)
			if aerr == nil && same {
				continue
			}
			if aerr == nil {
				err = errors.New("the copy lacks something else")
			}
		}
		if err != nil {
			bad.add(k.a, c.Path, err)
			continue
		}
		differ++
		k.a.errorf("%s: the copy is another one: %s %s", quote(c.Path), c.Kind, c.Fields)
	}
	if differ > 0 {
		return fmt.Errorf("%wthe copy %s of %s differs in %d paths", errDifferent, rec.ID, snapshotName(s), differ)
	}
	return bad.err()
}

// check proves copies whose pages are those of the originals: that all of it is
// there.
func (k *copying) check(ctx context.Context, b *bothSides, wanted []*repo.Snapshot, copied *copyResult) error {
	var opt repo.CheckOptions
	for _, s := range wanted {
		rec := k.copyOf(b, s)
		if rec == nil {
			continue // it was not copied
		}
		if rec.Tree != s.Tree || rec.Witness != s.Witness {
			return fmt.Errorf("%wthe copy %s of %s has another tree", errDifferent, rec.ID, snapshotName(s))
		}
		opt.Snapshots = append(opt.Snapshots, rec)
	}
	if len(opt.Snapshots) == 0 {
		return nil
	}
	res, err := k.dst.Check(ctx, opt, func(d repo.Damage) {
		if !d.Known && !d.Healed { // what the original lacks, the copy lacks
			k.a.errorf("%s: %s%s: %v", k.f.to, d.Object, quote(d.Path), d.Err)
		}
	})
	if err == nil && res.Damages > 0 {
		err = fmt.Errorf("%s: %w; `cutbank verify` tells more", k.f.to, errDamaged)
	}
	if err == nil {
		copied.verified += len(opt.Snapshots)
	}
	return err
}

// alike reports whether two stored nodes, of which not all can be read, have and
// lack the same.
func alike(ctx context.Context, a, b tree.Node) (bool, error) {
	x, err := a.Xattrs(ctx)
	y, berr := b.Xattrs(ctx)
	if (err == nil) != (berr == nil) || err == nil && !slices.EqualFunc(x, y, sameXattr) {
		return false, nil
	}
	switch a.Attr().Kind {
	case tree.Dir:
		x, xn := listed(ctx, a)
		y, yn := listed(ctx, b)
		return slices.Equal(x, y) && xn == yn, ctx.Err()
	case tree.File:
		return sameRanges(ctx, a, b)
	}
	return true, nil
}

func sameXattr(x, y tree.Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) }

// listed returns the names of a directory, and how often its list failed.
func listed(ctx context.Context, n tree.Node) (names []string, failed int) {
	for c, err := range n.Entries(ctx, 0) {
		if err != nil {
			failed++
			continue
		}
		names = append(names, c.Attr().Name)
	}
	return names, failed
}

// absence is a range of a file that cannot be read.
type absence struct {
	off, end int64
	kind     tree.ExtentKind
}

// sameRanges reports whether two files lack the same ranges, and are equal in the
// others.
func sameRanges(ctx context.Context, a, b tree.Node) (bool, error) {
	x, err := absences(ctx, a)
	if err != nil {
		return false, err
	}
	y, err := absences(ctx, b)
	if err != nil || !slices.Equal(x, y) || a.Attr().Size != b.Attr().Size {
		return false, err
	}
	x = append(x, absence{off: a.Attr().Size})
	var p, q [256 << 10]byte
	at := int64(0)
	for _, hole := range x {
		for at < hole.off {
			n := min(int64(len(p)), hole.off-at)
			if err := readFull(ctx, a, p[:n], at); err != nil {
				return false, err
			}
			if err := readFull(ctx, b, q[:n], at); err != nil {
				return false, err
			}
			if !bytes.Equal(p[:n], q[:n]) {
				return false, nil
			}
			at += n
		}
		at = hole.end
	}
	return true, nil
}

func absences(ctx context.Context, n tree.Node) (list []absence, err error) {
	e, ok := n.(tree.Extenter)
	if !ok {
		return nil, nil
	}
	for x, err := range e.Extents(ctx, 0) {
		if err != nil {
			return nil, err
		}
		if x.Kind != tree.Lost && x.Kind != tree.Absent {
			continue
		}
		if last := len(list) - 1; last >= 0 && list[last].end == x.Off && list[last].kind == x.Kind {
			list[last].end += x.Len
			continue
		}
		list = append(list, absence{x.Off, x.Off + x.Len, x.Kind})
	}
	return list, nil
}

func readFull(ctx context.Context, n tree.Node, p []byte, off int64) error {
	m, err := n.ReadAt(ctx, p, off)
	if m == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
