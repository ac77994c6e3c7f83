package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

type snapshotFlags struct {
	name, label, note, stdin, compression string
	tags, exclude, excludeFiles           []string
	mode                                  string
	data                                  []string
	oneFS, noParent                       bool
	workers                               int
	system, scratch                       string
}

// kept is what a snapshot is made of.
type kept struct {
	root   tree.Node
	paths  []string
	filter *filter                                     // nil: all is taken
	scan   func(ctx context.Context) *atomic.Uint64    // counts ahead; may be nil
	finish func(context.Context, *repo.Snapshot) error // of snapshotter.Options
	made   func() time.Time                            // nil: now
}

func (a *app) snapshotCommand() *cobra.Command {
	var s snapshotFlags
	c := &cobra.Command{
		Use:   "snapshot PATH... | snapshot --system KIND [-- OPTIONS]",
		Short: "Keep a snapshot of directories and files, or of a running system",
		Long: `snapshot keeps the paths as they are now. Files that have not changed since the
last snapshot of the same name are not read; of files that have, only new chunks
are stored. A file that changes while it is read is read again, twice at most,
and then stored and marked.

What cannot be read is named on stderr and leaves the snapshot partial (exit code
7). After an interruption nothing is half done: the next run stores only what is
missing.

--exclude and --exclude-file take patterns in the syntax of gitignore: one without
a slash fits names at any depth; one with a slash counts from each snapshotted
PATH, or is written with the PATH in front. Quote them, or the shell expands them.
The repository itself and mounts of cutbank are left out always.

--mode dataless keeps names, sizes, times, owners and permissions, and nothing that
files contain: reading one gives ENODATA. Attributes in the "user" namespace are
left out, too; names and the targets of symlinks are not. --mode light does so with
all files but those that a --data pattern fits (the syntax is that of --exclude); of
a pattern that fits none there is a warning. Snapshots of one name may differ in
their modes.

With --system the snapshot is one of a running system, such as a database, as it was
at one moment; "cutbank systems" lists the kinds. What stands behind "--" are the
options that the system's own tools have, with one dash or two; "cutbank systems
KIND" prints them, and the environment variables. Such a snapshot is whole or is not
kept. Space for what must be written down before it is stored comes from --scratch,
TMPDIR, or the folder for local state.

With a write-only credential (--credential, see "cutbank writer") nothing stored
can be read. What is needed to know unchanged files is kept in the folder for local
state, sealed; with --no-cache every file is read.

The snapshot's lasting name is its ID: of two that begin in the same second, the
TIME of one gets "-2".`,
		Example: `  cutbank snapshot -r /backup /etc /home --exclude '*.o' --exclude '/home/*/.cache'
  cutbank snapshot -r /backup --name db --label before-upgrade /var/lib/postgresql
  cutbank snapshot -r /backup --mode light --data '*.conf' --data /etc/ssh/ /etc
  pg_dumpall | cutbank snapshot -r /backup --name dump --stdin all.sql
  cutbank snapshot -r /backup --system command --name ldap -- --stream slapcat --as all.ldif`,
		Args: between(0, -1, "one PATH or more"),
		RunE: func(c *cobra.Command, args []string) error {
			if s.system != "" {
				return a.snapshotSystem(c.Context(), c, &s, args)
			}
			return a.snapshot(c.Context(), &s, args)
		},
	}
	f := c.Flags()
	systemFlag(c, &s.system, "keep a snapshot of a running system of this KIND; see `cutbank systems`")
	f.StringVar(&s.scratch, "scratch", "", "with --system: directory for temporary files (default: TMPDIR, or in the folder for local state)")
	f.StringVar(&s.name, "name", defaultName(), "what the snapshots of this source are called")
	f.StringVar(&s.label, "label", "", "a label for this snapshot, unique for the name")
	f.StringVar(&s.note, "note", "", "a note for people")
	f.StringSliceVar(&s.tags, "tag", nil, "a tag; repeatable")
	f.StringArrayVarP(&s.exclude, "exclude", "e", nil, "leave out what fits this pattern; repeatable")
	f.StringArrayVar(&s.excludeFiles, "exclude-file", nil, "read such patterns from a file; repeatable")
	f.StringVar(&s.mode, "mode", snapshotter.Full, "full, light or dataless: whether to keep what files contain")
	f.StringArrayVar(&s.data, "data", nil, "with --mode light, keep the contents of what fits this pattern (of a system: its data of this name); repeatable")
	f.BoolVarP(&s.oneFS, "one-file-system", "x", false, "do not descend into other file systems")
	f.StringVar(&s.stdin, "stdin", "", "keep standard input as a file of this name")
	f.StringVar(&s.compression, "compression", "fastest", "fastest, default or better")
	f.BoolVar(&s.noParent, "no-parent", false, "read every file, changed or not")
	a.heartbeat = repo.DefaultHeartbeat
	f.Var((*spanFlag)(&a.heartbeat), "heartbeat", "how often to give a sign of life; several times within the --grace of prune")
	f.IntVar(&s.workers, "workers", 0, "files read at once (default: one for each core)")
	return c
}

func (a *app) snapshot(ctx context.Context, s *snapshotFlags, args []string) error {
	if (s.stdin != "") == (len(args) > 0) {
		return usagef("give one PATH or more, or --stdin NAME, and not both; see `cutbank snapshot --help`")
	}
	if s.scratch != "" {
		return usagef("--scratch is for --system")
	}
	if err := s.checkMode(); err != nil {
		return err
	}
	if err := s.check(a); err != nil {
		return err
	}
	src, paths, fl, err := a.sources(s, args)
	if err != nil {
		return err
	}
	r, err := a.anyRepo(ctx)
	if err != nil {
		return err
	}
	_, err = a.keep(ctx, s, r, kept{root: src, paths: paths, filter: fl,
		scan: func(ctx context.Context) *atomic.Uint64 { return a.scan(ctx, src, fl) }})
	return err
}

// check says whether the flags can be meant so that all snapshots have.
func (s *snapshotFlags) check(a *app) error {
	levels := map[string]seal.Level{"fastest": seal.Fastest, "default": seal.Default, "better": seal.Better}
	level, ok := levels[s.compression]
	if !ok {
		return usagef("--compression %q: use fastest, default or better", s.compression)
	}
	a.level = level
	if err := repo.CheckName(s.name); err != nil {
		return usagef("%v: use --name", err)
	}
	if s.workers < 0 {
		return usagef("--workers %d: want 1 or more", s.workers)
	}
	for _, l := range append(slices.Clone(s.tags), s.label) {
		if err := repo.CheckLabel(l); err != nil && (l != "" || l != s.label) {
			return usagef("%v", err)
		}
	}
	return nil
}

// keep makes a snapshot, and tells of it. The record is that of what was committed,
// also beside an error; nil if nothing was.
func (a *app) keep(ctx context.Context, s *snapshotFlags, r *repo.Repo, src kept) (*repo.Snapshot, error) {
	var p snapshotter.Progress
	opt := snapshotter.Options{Name: s.name, Label: s.label, Note: s.note, Tags: s.tags, Host: hostName(), Program: programVersion(), Exclude: slices.Clone(s.exclude), Mode: s.recordMode(), Data: slices.Clone(s.data),
		Workers: s.workers, NoParent: s.noParent, Now: now, Progress: &p, Logf: a.logf, Warnf: a.warnf, Finish: src.finish}
	if src.filter != nil {
		opt.Filter = src.filter.take
	}
	opt.Problem = func(path string, err error) { a.warnf("%s: %v", quote("/"+path), err) }
	if src.made != nil {
		opt.Now = src.made
	}
	start := now()
	sctx, stopScan := context.WithCancel(ctx)
	total := &atomic.Uint64{}
	if src.scan != nil {
		total = src.scan(sctx)
	}
	stop := a.showProgress("snapshot", func() status {
		return status{p.Bytes.Load(), total.Load(), fmt.Sprintf("%s files, %s new, %s known", countText(p.Files.Load()), bytesText(p.NewBytes.Load()), bytesText(p.Known.Load()))}
	}, func() object {
		return object{"files": p.Files.Load(), "read": p.ReadBytes.Load(), "new": p.NewBytes.Load(), "known": p.Known.Load()}
	})
	rec, err := snapshotter.Run(ctx, r, src.root, src.paths, opt)
	stopScan()
	stop()
	if rec == nil {
		return nil, err
	}
	for _, line := range s.data {
		if src.filter != nil && src.filter.unfit[line] {
			a.warnf("--data %s fits no file: the snapshot has no contents by it", quote(line))
		}
	}
	if serr := a.summary(ctx, rec, now().Sub(start)); serr != nil {
		return rec, serr
	}
	return rec, err
}

// checkMode says whether --mode, --data and --stdin go together.
func (s *snapshotFlags) checkMode() error {
	switch s.mode {
	case snapshotter.Full, snapshotter.Dataless:
		if len(s.data) > 0 {
			return usagef("--data is for --mode light: a %s snapshot has the contents of all files or of none", s.mode)
		}
	case snapshotter.Light:
		if len(s.data) == 0 {
			return usagef("--mode light: say with --data of which files to keep the contents")
		}
	default:
		return usagef("--mode %q: use full, light or dataless", s.mode)
	}
	if s.stdin != "" && s.mode != snapshotter.Full {
		return usagef("--stdin goes with --mode full only: of a stream there is nothing but its contents")
	}
	return nil
}

// recordMode is the mode as records have it.
func (s *snapshotFlags) recordMode() string {
	if s.mode == snapshotter.Full {
		return ""
	}
	return s.mode
}

// sources makes the root of what is to be kept, and the filter for it.
func (a *app) sources(s *snapshotFlags, args []string) (tree.Node, []string, *filter, error) {
	if s.stdin != "" {
		n, err := snapshotter.Stdin(s.stdin, a.stdin, tree.TimeOf(now()))
		return n, []string{"/" + s.stdin}, nil, err
	}
	fl := &filter{oneFS: s.oneFS, mode: s.mode}
	var paths []string
	follow := map[string]string{} // paths that were given with a slash at the end
	for _, p := range args {
		abs, err := filepath.Abs(p)
		if err != nil {
			return nil, nil, nil, err
		}
		if strings.HasSuffix(p, "/") && abs != "/" {
			follow[abs] = abs + "/"
		}
		n, err := openSource(abs, follow)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("nothing was stored: %w", err)
		}
		if n.Attr().Kind == tree.Symlink {
			a.warnf("%s is a symlink, which is kept as such; %s/ would be what it points to", quote(abs), quote(abs))
		}
		paths = append(paths, abs)
		fl.roots = append(fl.roots, filterRoot{path: strings.TrimPrefix(abs, "/"), dev: n.Attr().Dev})
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	var lines []string
	for _, file := range s.excludeFiles {
		more, err := readLines(file)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("--exclude-file: %w", err)
		}
		lines = append(lines, more...)
	}
	s.exclude = append(lines, s.exclude...) // who types has the last word
	for i := range fl.roots {
		root := &fl.roots[i]
		root.match = parseIgnore(s.exclude, root.path, fl.roots)
		fl.keepData(root, root.path, s.data)
	}
	if outer, inner, ok := fl.nested(); ok && (s.oneFS || len(s.exclude) > 0) {
		// What the outer one leaves out could hold the inner one.
		return nil, nil, nil, usagef("%s lies in %s: with --exclude or --one-file-system give them to snapshots of their own, with another --name", quote(inner), quote(outer))
	}
	fl.forget(a.repoPath)
	if dir, err := a.stateDir(); err == nil {
		fl.forget(dir)
	}
	fl.forgetMounts()
	root, err := snapshotter.Join(paths, func(p string) (tree.Node, error) { return openSource(p, follow) })
	return root, paths, fl, err
}

func openSource(path string, follow map[string]string) (tree.Node, error) {
	if f, ok := follow[path]; ok {
		path = f
	}
	return source.Open(path)
}

// scan counts ahead what there is, for a bar's total. It is worth its cost only
// where somebody looks at it.
func (a *app) scan(ctx context.Context, src tree.Node, fl *filter) *atomic.Uint64 {
	total := &atomic.Uint64{}
	f, ok := a.stderr.(*os.File)
	if a.quiet || a.json || fl == nil || !ok || !term.IsTerminal(int(f.Fd())) {
		return total
	}
	quiet := *fl // the filter counts what it skips, and notes what fits
	quiet.unfit = nil
	var walk func(n tree.Node, path string, sum *uint64)
	walk = func(n tree.Node, path string, sum *uint64) {
		for c, err := range n.Entries(ctx, 0) {
			if err != nil || ctx.Err() != nil {
				continue
			}
			at := c.Attr()
			p := strings.TrimPrefix(path+"/"+at.Name, "/")
			switch take := quiet.take(p, at); {
			case at.Kind == tree.File && take == snapshotter.Whole:
				*sum += uint64(at.Size)
			case at.Kind == tree.Dir && take == snapshotter.Whole:
				walk(c, p, sum)
			}
		}
	}
	go func() {
		var sum uint64
		walk(src, "", &sum)
		if ctx.Err() == nil {
			total.Store(sum)
		}
	}()
	return total
}

// summary tells what a snapshot holds and what it cost.
func (a *app) summary(ctx context.Context, rec *repo.Snapshot, d time.Duration) error {
	dir := rec.Time.UTC().Format(repo.TimeLayout)
	if snaps, err := a.open.Snapshots(ctx); err == nil {
		for _, s := range snaps {
			if s.ID == rec.ID {
				dir = s.Dir
			}
		}
	}
	st := rec.Stats
	a.sayf("snapshot %s: %s/%s", rec.ID.String()[:8], rec.Name, dir)
	if text := systemText(rec.System); text != "" {
		a.sayf("  %s, %s", text, rec.ModeName())
	}
	a.sayf("  %s files, %s directories, %s", countText(rec.Totals.Files), countText(rec.Totals.Dirs), bytesText(rec.Totals.Bytes))
	a.sayf("  %s files new, %s modified, %s unchanged", countText(st.New), countText(st.Modified), countText(st.Unchanged))
	a.sayf("  %s read, %s new, %s stored", bytesText(st.ReadBytes), bytesText(st.NewBytes), bytesText(st.Stored))
	if st.NewBytes > 1<<20 {
		a.sayf("  ratio %.2f: the whole snapshot to what it added", ratio(rec.Totals.Bytes, st.Stored))
	}
	if rec.Changed > 0 {
		a.sayf("  %s files changed while they were read, and are marked", countText(rec.Changed))
	}
	a.sayf("  took %s, %s/s", durationText(d), bytesText(uint64(float64(rec.Totals.Bytes)/d.Seconds())))
	o := object{"id": rec.ID.String(), "name": rec.Name, "time": rec.Time, "dir": dir, "label": rec.Label, "files": rec.Totals.Files, "dirs": rec.Totals.Dirs,
		"bytes": rec.Totals.Bytes, "new_files": st.New, "modified_files": st.Modified, "unchanged_files": st.Unchanged, "read_bytes": st.ReadBytes,
		"new_bytes": st.NewBytes, "stored": st.Stored, "changed": rec.Changed, "unread": rec.Unread, "seconds": d.Seconds(), "tree": rec.Tree.String(), "partial": rec.Unread > 0}
	if len(rec.System) > 0 {
		o["system"], o["mode"] = rec.System, rec.ModeName()
	}
	if err := a.emit("snapshot", o); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
