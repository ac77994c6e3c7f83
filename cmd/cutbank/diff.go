package main

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

type diffFlags struct {
	stat, content, quick bool
	ignore               []string
}

func (a *app) diffCommand() *cobra.Command {
	var s diffFlags
	c := &cobra.Command{
		Use:   "diff A B",
		Short: "Compare two snapshots, or a snapshot with a live directory",
		Long: `diff tells what must change in A for it to become B: "+" was added, "-" removed, "M"
modified, with what differs. Each of A and B is a SNAPSHOT[:PATH], or a live
directory if it starts with "/", "." or "dir:". Beside a live directory a SNAPSHOT
without a PATH means the same directory as it was.

Two snapshots are compared by the IDs of their chunks, without reading files. A
live file of the same size and mtime as the stored one counts as equal; with
--content it is read in any case; with --quick nothing is read, and only
attributes count. What is read of a live file is hashed and compared with the
stored IDs.

Differences give exit code 8.`,
		Example: `  cutbank diff -r /backup web/2026-11-20T10.00.00Z web/latest
  cutbank diff -r /backup latest /etc
  cutbank diff -r /backup latest:/srv dir:srv-copy --content --ignore mtime,owner`,
		Args: exactly(2, "A and B"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.buffered(func() error { return a.diff(c.Context(), &s, args[0], args[1]) })
		},
	}
	f := c.Flags()
	a.storedFlag(c)
	f.BoolVar(&s.stat, "stat", false, "print totals only")
	f.BoolVar(&s.content, "content", false, "read live files even if size and mtime are equal")
	f.BoolVar(&s.quick, "quick", false, "compare attributes of live files only")
	f.StringSliceVar(&s.ignore, "ignore", nil, "do not look at these: "+strings.Join(fieldNames(), ", "))
	c.MarkFlagsMutuallyExclusive("content", "quick")
	return c
}

// fieldNames lists what can differ.
func fieldNames() []string { return diff.Fields(1<<16 - 1).Names() }

func parseFields(names []string) (diff.Fields, error) {
	var f diff.Fields
	for _, name := range names {
		i := slices.Index(fieldNames(), name)
		if i < 0 {
			return 0, usagef("--ignore %q: use %s", name, strings.Join(fieldNames(), ", "))
		}
		f |= 1 << i
	}
	return f, nil
}

// side is one of two trees that are compared.
type side struct {
	arg  string
	live string // the directory's path; empty: stored
	rec  *repo.Snapshot
	path string // in the snapshot
	node tree.Node
	view bool
}

// liveArg returns the path of an argument that names a live directory.
func liveArg(arg string) (string, bool) {
	if p, ok := strings.CutPrefix(arg, "dir:"); ok {
		return p, true
	}
	return arg, strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".")
}

func (a *app) diff(ctx context.Context, s *diffFlags, args ...string) error {
	ignore, err := parseFields(s.ignore)
	if err != nil {
		return err
	}
	sides, err := a.sides(ctx, args)
	if err != nil {
		return err
	}
	x, y := sides[0], sides[1]
	opt := diff.Options{Ignore: ignore, Content: !s.quick, Quick: !s.content}
	switch {
	case x.live == "" && y.live == "":
		opt.IDsComparable = true
		// Files of a view have no IDs, and the times that its kind gives them.
		opt.Quick = opt.Quick && !x.view && !y.view || s.quick
	case s.quick || x.live != "" && y.live != "":
	default:
		// The live side learns to tell IDs.
		opt.IDsComparable = true
		h := a.hashing(!s.content)
		if x.live != "" {
			x.node = h.wrap(x.node, y.node)
		} else {
			y.node = h.wrap(y.node, x.node)
		}
	}
	prefix := ""
	if x.live == "" && y.live == "" && x.path == "" && y.path == "" {
		prefix = "/"
	}
	p := &changes{a: a, stat: s.stat, prefix: prefix}
	if err := p.run(ctx, x.node, y.node, opt); err != nil {
		return err
	}
	return p.finish(args[0], args[1])
}

// sides opens what is compared.
func (a *app) sides(ctx context.Context, args []string) ([2]*side, error) {
	var sides [2]*side
	live := ""
	for i, arg := range args {
		sides[i] = &side{arg: arg}
		if p, ok := liveArg(arg); ok {
			abs, err := filepath.Abs(p)
			if err != nil {
				return sides, err
			}
			if sides[i].node, err = source.Open(p); err != nil {
				return sides, err
			}
			sides[i].live, live = abs, abs
		}
	}
	var pages *snapfs.Cache
	for _, s := range sides {
		if s.live != "" {
			continue
		}
		r, err := a.synced(ctx)
		if err != nil {
			return sides, err
		}
		if pages == nil {
			pages = snapfs.NewCache(r.Store())
		}
		name, p := repo.SplitPath(s.arg)
		if s.rec, err = r.Resolve(ctx, name); err != nil {
			return sides, err
		}
		if !strings.Contains(s.arg, ":") {
			p = live
		}
		s.path = cleanPath(p)
		if k, _, err := a.viewOf(s.rec); err == nil && k != nil {
			s.view = true
		}
		if s.node, err = a.nodeIn(ctx, pages, s.rec, p); err != nil {
			return sides, err
		}
	}
	return sides, nil
}

// changes prints what differs, and sums it up.
type changes struct {
	a      *app
	stat   bool
	prefix string // in front of paths
	bad    failures

	added, removed, modified int
	addedBytes, removedBytes uint64
	fields                   [16]int // how often each differs
}

func (p *changes) run(ctx context.Context, x, y tree.Node, opt diff.Options) error {
	for c, err := range diff.Compare(ctx, x, y, opt) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			p.bad.add(p.a, p.path(c.Path), err)
			continue
		}
		p.count(c)
		if p.stat {
			continue
		}
		if err := p.print(c); err != nil {
			return err
		}
	}
	return nil
}

func (p *changes) path(at string) string {
	if p.prefix == "" {
		return at
	}
	return path.Join(p.prefix, at)
}

func (p *changes) count(c diff.Change) {
	bytes := func(n tree.Node) uint64 {
		if n == nil || n.Attr().Kind != tree.File {
			return 0
		}
		return uint64(n.Attr().Size)
	}
	switch c.Kind {
	case diff.Added:
		p.added++
		p.addedBytes += bytes(c.B)
	case diff.Removed:
		p.removed++
		p.removedBytes += bytes(c.A)
	case diff.Modified:
		p.modified++
		for i := range p.fields {
			if c.Fields&(1<<i) != 0 {
				p.fields[i]++
			}
		}
	}
}

func (p *changes) print(c diff.Change) error {
	at := p.path(c.Path)
	if p.a.json {
		o := object{"op": c.Kind.String(), "fields": append([]string{}, c.Fields.Names()...)}
		for key, n := range map[string]tree.Node{"a": c.A, "b": c.B} {
			if n != nil {
				side := nodeObject("", n.Attr())
				delete(side, "path")
				o[key] = side
			}
		}
		return p.a.emit("change", o.setPath("path", at))
	}
	n, mark := c.B, '+'
	switch c.Kind {
	case diff.Removed:
		n, mark = c.A, '-'
	case diff.Modified:
		mark = 'M'
	}
	line := fmt.Sprintf("%c %s", mark, quote(at))
	if n.Attr().Kind == tree.Dir && at != "/" {
		line += "/"
	}
	if c.Kind == diff.Modified {
		line += "  " + fieldsText(c)
	}
	p.a.printf("%s\n", line)
	return nil
}

// fieldsText tells what differs, with both values where they are short.
func fieldsText(c diff.Change) string {
	x, y := c.A.Attr(), c.B.Attr()
	var parts []string
	for _, name := range c.Fields.Names() {
		switch name {
		case "kind":
			name += fmt.Sprintf(" (%s -> %s)", x.Kind, y.Kind)
		case "mode":
			name += fmt.Sprintf(" (%04o -> %04o)", x.Mode, y.Mode)
		case "owner":
			name += fmt.Sprintf(" (%d:%d -> %d:%d)", x.UID, x.GID, y.UID, y.GID)
		case "size":
			name += fmt.Sprintf(" (%d -> %d)", x.Size, y.Size)
		case "target":
			name += fmt.Sprintf(" (%s -> %s)", quote(x.Target), quote(y.Target))
		}
		parts = append(parts, name)
	}
	return strings.Join(parts, ", ")
}

// finish sums up; differences are an error of their own.
func (p *changes) finish(x, y string) error {
	total := p.added + p.removed + p.modified
	byField := object{}
	var parts []string
	for i, name := range fieldNames() {
		if n := p.fields[i]; n > 0 {
			byField[name] = n
			parts = append(parts, fmt.Sprintf("%s %s", countText(uint64(n)), name))
		}
	}
	if total > 0 {
		p.a.sayf("%s added (%s), %s removed (%s), %s modified", countText(uint64(p.added)), bytesText(p.addedBytes),
			countText(uint64(p.removed)), bytesText(p.removedBytes), countText(uint64(p.modified)))
	}
	if len(parts) > 0 && p.stat {
		p.a.sayf("  modified: %s", strings.Join(parts, ", "))
	}
	if total == 0 && p.bad.n == 0 {
		p.a.sayf("no differences")
	}
	if err := p.a.emit("diff", object{"added": p.added, "removed": p.removed, "modified": p.modified, "added_bytes": p.addedBytes,
		"removed_bytes": p.removedBytes, "fields": byField, "unread": p.bad.n}); err != nil {
		return err
	}
	if err := p.bad.err(); err != nil {
		return err
	}
	if total > 0 {
		return fmt.Errorf("%w%s differences between %s and %s", errDifferent, countText(uint64(total)), quote(x), quote(y))
	}
	return nil
}
