package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

type findFlags struct {
	snapshots, names, types          []string
	name, within, size, newer, older string
}

func (a *app) findCommand() *cobra.Command {
	var s findFlags
	c := &cobra.Command{
		Use:   "find [GLOB]",
		Short: "Search all snapshots, and tell which hold each version",
		Long: `find searches the snapshots for paths. For each path that fits it lists the
versions, oldest first: equal in contents, size and mtime is one version; and for
each version the snapshots that hold it, as ranges with their numbers.

GLOB without a slash is for names at any depth; with one it is for whole paths. **
stands for any number of directories. All conditions must hold. What many
snapshots share is searched once.

--size takes a number of bytes such as 10K: +10K more than that, -10K less, 10K
exactly that. --newer and --older take a date, a date with a time, or an age such
as 90m, 12h, 3d or 2w. Times without a zone are UTC.`,
		Example: `  cutbank find -r /backup '*.conf'
  cutbank find -r /backup '/home/**/*.ods' --newer 2w
  cutbank find -r /backup --path /var/log --size +100M --type f
  cutbank find -r /backup passwd --snapshot web/latest --json`,
		Args: between(0, 1, "one GLOB at most"),
		RunE: func(c *cobra.Command, args []string) error {
			glob := ""
			if len(args) == 1 {
				glob = args[0]
			}
			w, err := s.wanted(glob, now())
			if err != nil {
				return err
			}
			return a.buffered(func() error { return a.find(c.Context(), &s, w) })
		},
	}
	f := c.Flags()
	a.storedFlag(c)
	f.StringArrayVar(&s.snapshots, "snapshot", nil, "search only this SNAPSHOT; repeatable")
	f.StringSliceVar(&s.names, "snapshots-of", nil, "search only snapshots of this name; repeatable")
	f.StringVar(&s.name, "name", "", "glob for the last part of the path")
	f.StringVar(&s.within, "path", "", "search only this path and what is below it")
	f.StringVar(&s.size, "size", "", "size of files: +1M, -10K or 4096")
	f.StringVar(&s.newer, "newer", "", "modified after this time")
	f.StringVar(&s.older, "older", "", "modified before this time")
	f.StringSliceVarP(&s.types, "type", "t", nil, "f file, d directory, l symlink, p FIFO, s socket, c or b device; repeatable")
	return c
}

// wanted is what a path must be to be found.
type wanted struct {
	name, whole  string // globs; empty: any
	within       []string
	size         sizeRange
	newer, older *tree.Time
	kinds        []tree.Kind
}

// sizeRange is a range of sizes, both ends included; of files only, if set.
type sizeRange struct {
	low, high int64
	set       bool
}

func (s *findFlags) wanted(glob string, at time.Time) (*wanted, error) {
	w := &wanted{name: s.name, within: splitClean(s.within)}
	if strings.Contains(glob, "/") {
		w.whole = "/" + strings.TrimPrefix(glob, "/")
		if base, _ := doublestar.SplitPattern(w.whole); len(w.within) == 0 {
			w.within = splitClean(base) // it fits below there only
		}
	} else if glob != "" && s.name != "" {
		return nil, usagef("a GLOB without a slash and --name mean the same: give one")
	} else if glob != "" {
		w.name = glob
	}
	for _, g := range []string{w.name, w.whole} {
		if !doublestar.ValidatePattern(g) {
			return nil, usagef("%q is no glob: brackets and braces must be closed", g)
		}
	}
	if strings.Contains(w.name, "/") {
		return nil, usagef("--name %q: a name has no slash; give a GLOB with the whole path", w.name)
	}
	var err error
	if w.size, err = parseSizeRange(s.size); err != nil {
		return nil, usagef("--size: %v", err)
	}
	if w.newer, err = parseWhen(s.newer, at); err != nil {
		return nil, usagef("--newer: %v", err)
	}
	if w.older, err = parseWhen(s.older, at); err != nil {
		return nil, usagef("--older: %v", err)
	}
	for _, t := range s.types {
		k := strings.Index("dflpscb", t)
		if len(t) != 1 || k < 0 {
			return nil, usagef("--type %q: use f, d, l, p, s, c or b", t)
		}
		w.kinds = append(w.kinds, tree.Kind(k+1))
	}
	return w, nil
}

func splitClean(p string) []string {
	if p = cleanPath(p); p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

func parseSizeRange(s string) (r sizeRange, err error) {
	if s == "" {
		return r, nil
	}
	n, err := parseSize(strings.TrimLeft(s, "+-"))
	if err != nil || len(s)-len(strings.TrimLeft(s, "+-")) > 1 {
		return r, fmt.Errorf("%q is no size: write it like +1M, -10K or 4096", s)
	}
	switch s[0] {
	case '+':
		return sizeRange{n + 1, 1<<63 - 1, true}, nil
	case '-':
		return sizeRange{0, n - 1, true}, nil
	}
	return sizeRange{n, n, true}, nil
}

// parseWhen reads a point in time, or an age before at. Empty is nil.
func parseWhen(s string, at time.Time) (*tree.Time, error) {
	if s == "" {
		return nil, nil
	}
	if d, ok := parseAge(s); ok {
		t := tree.TimeOf(at.Add(-d))
		return &t, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339, repo.TimeLayout, "2006-01-02T15:04:05", time.DateTime, "2006-01-02T15:04", "2006-01-02 15:04"} {
		if t, err := time.Parse(layout, s); err == nil {
			t := tree.TimeOf(t)
			return &t, nil
		}
	}
	return nil, fmt.Errorf("%q is no time: write it like 2026-11-21, 2026-11-21T10:00:00Z, or 3d for three days ago", s)
}

func parseAge(s string) (time.Duration, bool) {
	units := map[byte]time.Duration{'d': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	if u, ok := units[s[len(s)-1]]; ok {
		n, err := strconv.ParseFloat(s[:len(s)-1], 64)
		return time.Duration(n * float64(u)), err == nil && n >= 0 && n < 1e5
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
}

// fits reports whether an entry in directory dir is wanted.
func (w *wanted) fits(dir string, e *tree.Entry) bool {
	switch {
	case w.kinds != nil && !slices.Contains(w.kinds, e.Kind):
	case w.size.set && (e.Kind != tree.File || e.Size < w.size.low || e.Size > w.size.high):
	case w.newer != nil && e.Mtime.Compare(*w.newer) <= 0:
	case w.older != nil && e.Mtime.Compare(*w.older) >= 0:
	case w.name != "" && !doublestar.MatchUnvalidated(w.name, e.Name):
	case w.whole != "" && !doublestar.MatchUnvalidated(w.whole, path.Join(dir, e.Name)):
	default:
		return true
	}
	return false
}

func (a *app) find(ctx context.Context, s *findFlags, w *wanted) error {
	r, err := a.synced(ctx)
	if err != nil {
		return err
	}
	all, damage := r.Snapshots(ctx)
	if damage != nil {
		a.warnf("%v", damage)
	}
	snaps := choose(all, s.names, nil)
	if len(s.snapshots) > 0 {
		if snaps, err = pick(snaps, s.snapshots); err != nil {
			return err
		}
	}
	// Snapshots of one name side by side, so that a version's are ranges.
	slices.SortStableFunc(snaps, func(a, b *repo.Snapshot) int { return strings.Compare(a.Name, b.Name) })
	f := &finder{a: a, ctx: ctx, get: r.Store().Page, pages: snapfs.NewCache(r.Store()), w: w, snaps: snaps}
	if err := f.run(); err != nil {
		return err
	}
	if f.paths == 0 && f.bad.n == 0 {
		a.sayf("nothing found in %d snapshots", len(snaps))
	}
	if err := a.emit("find", object{"paths": f.paths, "versions": f.versions, "snapshots": len(snaps), "unread": f.bad.n}); err != nil {
		return err
	}
	if err := f.bad.err(); err != nil {
		return err
	}
	return damage
}

// snapshotsNamed returns the snapshots that args name, none for no args. What
// cannot be read of the others is told, and no reason to stop.
func (a *app) snapshotsNamed(ctx context.Context, r *repo.Repo, args []string) ([]*repo.Snapshot, error) {
	if len(args) == 0 {
		return nil, nil
	}
	snaps, err := r.Snapshots(ctx)
	if err != nil {
		a.warnf("%v", err)
	}
	return pick(snaps, args)
}

// pick returns the snapshots that args mean, in the order of snaps.
func pick(snaps []*repo.Snapshot, args []string) ([]*repo.Snapshot, error) {
	chosen := map[repo.ID]bool{}
	for _, arg := range args {
		s, err := repo.Find(snaps, arg)
		if err != nil {
			return nil, err
		}
		chosen[s.ID] = true
	}
	var picked []*repo.Snapshot
	for _, s := range snaps {
		if chosen[s.ID] {
			picked = append(picked, s)
		}
	}
	return picked, nil
}
