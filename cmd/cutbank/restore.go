package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/restore"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
)

type restoreFlags struct {
	opt       restore.Options
	overwrite string
	receipt   string
	noReceipt bool
	maxDelete float64

	system, scratch                   string
	force, allowRelease, allowCluster bool
}

func (a *app) restoreCommand() *cobra.Command {
	var s restoreFlags
	c := &cobra.Command{
		Use:   "restore SNAPSHOT[:PATH] TARGET | restore SNAPSHOT[:PATH] --system KIND [-- OPTIONS]",
		Short: "Bring files back, or a system",
		Long: `restore brings a snapshot, or what PATH names in it, into the directory TARGET:
SNAPSHOT:DIR puts DIR's contents there, SNAPSHOT:FILE makes TARGET/FILE, and
SNAPSHOT alone puts the snapshotted paths under TARGET.

What is there already and equal is kept; of files that differ only what differs
is fetched. --overwrite says what counts: with if-changed a file of the same size
and mtime is equal, and all others are compared with the stored chunks; always
compares every file; if-newer changes only what is older than in the snapshot;
never only adds what is missing. A file is written beside the old one, synced and
renamed, or with --in-place changed where it differs. Nothing outside TARGET is ever touched,
whatever links the snapshot or TARGET hold. After an interruption, run it again:
what is finished is not fetched twice.

--include and --exclude take globs over the whole path relative to what is
restored, other than snapshot's: '*.conf' fits at the top only, '**/*.conf' at any
depth. With --delete, what the snapshot does
not have is removed from the restored directories; more than a tenth of what is
there only with --yes.

With --system a system's snapshot, or the part of it that PATH names where "cutbank
systems" says that there can be parts, is brought into a running system, or to where
one is started from; what stands behind "--" are options of the system's own tools,
which "cutbank systems KIND" prints. What is there already is replaced with --force
only; another version of the system is refused without --allow-release-change, and
another cluster than the one captured without --allow-other-cluster. Without
--system such a snapshot is brought into TARGET as the files that "cutbank ls" shows.

At the end stands a receipt: every path with size and hash, in a file below
~/.local/state/cutbank/receipts that nobody but you removes, or where --receipt
says. "cutbank verify --receipt FILE" compares it with the files at any later time.`,
		Example: `  cutbank restore -r /backup latest:/etc/nginx /etc/nginx --dry-run
  cutbank restore -r /backup web/latest:/srv /srv --delete --exclude 'cache/**'
  cutbank restore -r /backup latest /mnt/disk --include '**/*.conf'
  cutbank restore -r /backup ldap/latest --system command --dry-run -- --restore 'slapadd'`,
		Args: func(c *cobra.Command, args []string) error {
			if s.system != "" {
				return nil // restoreSystem looks at them
			}
			return exactly(2, "SNAPSHOT[:PATH] and TARGET")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if err := s.checkSystem(c); err != nil {
				return err
			}
			if s.system != "" {
				return a.restoreSystem(c.Context(), c, &s, args)
			}
			return a.restore(c.Context(), &s, args[0], args[1])
		},
	}
	f := c.Flags()
	a.storedFlag(c)
	systemFlag(c, &s.system, "bring it into a system of this KIND; see `cutbank systems`")
	f.StringVar(&s.scratch, "scratch", "", "with --system: directory for temporary files (default: TMPDIR, or in the folder for local state)")
	f.BoolVar(&s.force, "force", false, "with --system: replace what is there")
	f.BoolVar(&s.allowRelease, "allow-release-change", false, "with --system: into another version than the one captured")
	f.BoolVar(&s.allowCluster, "allow-other-cluster", false, "with --system: into another cluster than the one captured")
	f.StringArrayVarP(&s.opt.Include, "include", "i", nil, "restore only what fits this glob; repeatable")
	f.StringArrayVarP(&s.opt.Exclude, "exclude", "e", nil, "leave out what fits this glob; repeatable")
	f.StringVar(&s.overwrite, "overwrite", "if-changed", "always, if-changed, if-newer or never")
	f.BoolVar(&s.opt.Delete, "delete", false, "remove what the snapshot does not have")
	f.Float64Var(&s.maxDelete, "max-delete", 0.1, "share of the target that --delete may remove without --yes")
	f.BoolVarP(&s.opt.Yes, "yes", "y", false, "let --delete remove any share")
	f.BoolVar(&s.opt.InPlace, "in-place", false, "rewrite only what differs, within existing files")
	f.BoolVar(&s.opt.Sparse, "sparse", false, "make holes of zeros, also where there were none")
	f.BoolVar(&s.opt.Verify, "verify", false, "read everything back and compare")
	f.BoolVarP(&s.opt.DryRun, "dry-run", "n", false, "tell what would be done, and do nothing")
	f.IntVar(&s.opt.Workers, "workers", 0, "files written at once (default: one for each core; from places in the network 4 to 8)")
	f.StringVar(&s.receipt, "receipt", "", "write the receipt to this file (default: in the user's state folder)")
	f.BoolVar(&s.noReceipt, "no-receipt", false, "write no receipt")
	return c
}

// checkSystem says whether the flags go together with --system, or without.
func (s *restoreFlags) checkSystem(c *cobra.Command) error {
	wrong, text := []string{"scratch", "force", "allow-release-change", "allow-other-cluster"}, "goes with --system only"
	if s.system != "" {
		wrong, text = []string{"include", "exclude", "overwrite", "delete", "max-delete", "yes", "in-place", "sparse", "verify", "workers", "receipt", "no-receipt", "stored", "secrets"}, "is for directories, not for --system"
	}
	for _, name := range wrong {
		if c.Flags().Changed(name) {
			return usagef("--%s %s", name, text)
		}
	}
	return nil
}

func (a *app) restore(ctx context.Context, s *restoreFlags, arg, target string) error {
	if err := s.check(); err != nil {
		return err
	}
	// The receipt shall be good from wherever it is looked at.
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	if st, err := os.Stat(target); err == nil && !st.IsDir() {
		return usagef("%s is no directory: TARGET is one, and SNAPSHOT:FILE makes TARGET/FILE", quote(target))
	}
	a.diskPages = true // contents are about to be on the disk anyway
	rec, at, n, err := a.node(ctx, arg)
	if err != nil {
		return err
	}
	if s.opt.Delete && rec.Unread > 0 && !s.opt.Yes && !s.opt.DryRun {
		return fmt.Errorf("%wsnapshot %s is partial: %d paths could not be read when it was made (`cutbank inspect` names them), and --delete would take them for deleted; --yes does it all the same", errRefused, rec.ID.String()[:8], rec.Unread)
	}
	if rec.ModeName() != snapshotter.Full {
		a.warnf("%s is a %s snapshot: files whose contents it does not have are named, and left as they are", rec.ID.String()[:8], rec.Mode)
	}
	item := restore.Item{Node: n}
	switch {
	case at == "":
		item.Bare = true // the root stands for no directory of the source
	case n.Attr().Kind != tree.Dir:
		item.Path = path.Base(at)
	}
	opt := s.opt
	opt.Source = rec.ID.String() + ":" + at
	opt.Sum = a.open.SecretKeys().Data.Sum
	opt.Spare = a.spare()
	opt.Prefetch = func(_ context.Context, ids []chunk.ID) { a.open.Store().Prefetch(ids) }
	opt.Ahead = a.open.Store().Ahead()
	var done atomic.Uint64
	opt.Observer = a.restoreObserver(&done, opt.DryRun)
	receipt, err := a.openReceipt(s, rec)
	if err != nil {
		return err
	}
	if receipt != nil {
		opt.Receipt = receipt
	}
	total := uint64(0)
	if t, ok := n.(tree.Totaler); ok && len(opt.Include) == 0 {
		total = t.Totals().Bytes
	}
	stop := func() {}
	if !opt.DryRun {
		stop = a.showProgress("restore", func() status { return status{done: done.Load(), total: total} }, nil)
	}
	start := now()
	totals, err := restore.Run(ctx, []restore.Item{item}, target, opt)
	stop()
	name, rerr := closeReceipt(receipt, err)
	if err == nil {
		err = rerr
	}
	if err != nil && !errors.As(err, new(*restore.ProblemsError)) {
		return restoreFailed(err, target)
	}
	serr := a.restoreSummary(totals, opt.DryRun, now().Sub(start).Seconds(), name)
	if err != nil {
		return restoreFailed(err, target)
	}
	return serr
}

// check says whether the options can be meant so, and puts them in place.
func (s *restoreFlags) check() error {
	policies := map[string]restore.Policy{"always": restore.Always, "if-changed": restore.IfChanged, "if-newer": restore.IfNewer, "never": restore.Never}
	var ok bool
	if s.opt.Overwrite, ok = policies[s.overwrite]; !ok {
		return usagef("--overwrite %q: use always, if-changed, if-newer or never", s.overwrite)
	}
	if !(s.maxDelete >= 0 && s.maxDelete <= 1) {
		return usagef("--max-delete %v: want a share from 0 to 1", s.maxDelete)
	}
	if s.opt.MaxDelete = s.maxDelete; s.maxDelete == 0 {
		s.opt.MaxDelete = math.SmallestNonzeroFloat64 // 0 would mean the default
	}
	return nil
}

// restoreFailed is the error of a restore as the command's, with its exit code.
func restoreFailed(err error, target string) error {
	var refused *restore.DeleteRefusedError
	var problems *restore.ProblemsError
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%w%w", errRefused, err)
	case !errors.As(err, &problems):
		return err
	// Damage in the repository counts more than that the restore is partial.
	case errors.Is(err, chunk.ErrCorrupt), errors.Is(err, chunk.ErrMissing):
		return fmt.Errorf("%d paths were not restored fully, some because stored data is damaged: %w", problems.Count, chunk.ErrCorrupt)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("stopped because %s is full: what was not reached is not restored; free space and run again, what is done is not fetched twice: %w", quote(target), errPartialRestore)
	}
	return fmt.Errorf("%d paths were not restored fully: %w", problems.Count, errPartialRestore)
}

// spare keeps --delete away from what every snapshot leaves out: the repository,
// local state, and the receipts.
func (a *app) spare() func(dev, ino uint64) bool {
	own := &filter{}
	own.forget(a.repoPath)
	if dir, err := a.stateDir(); err == nil {
		own.forget(dir)
	}
	if dir, err := receiptDir(); err == nil {
		own.forget(dir)
	}
	return func(dev, ino uint64) bool { return own.own[[2]uint64{dev, ino}] }
}

// receiptDir is where receipts go by themselves.
func receiptDir() (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(dir, "cutbank", "receipts"), nil
}

// errPartialRestore has the exit code of everything that is done, but not
// whole.
var errPartialRestore = fmt.Errorf("restore is partial%w", &partialMark{})

type partialMark struct{}

func (*partialMark) Error() string        { return "" }
func (*partialMark) Is(target error) bool { return target == snapshotter.ErrPartial }

func (a *app) restoreObserver(done *atomic.Uint64, dry bool) restore.Observer {
	o := restore.Observer{
		Problem: func(path string, err error) {
			a.errorf("%s: %v", quote(path), err)
			if err := a.emit("problem", object{"error": err.Error()}.setPath("path", path)); err != nil {
				a.errorf("%v", err)
			}
		},
		Progress: func(_, write int64) { done.Add(uint64(write)) },
	}
	if !dry {
		return o
	}
	o.Planned = func(act restore.Action) {
		if act.Op == restore.Keep && !a.verbose && !a.json {
			return
		}
		a.printf("%-7s %s", act.Op, quote(act.Path))
		if act.BytesRead > 0 || act.BytesWrite > 0 {
			a.printf("  (%s to read, %s to write)", bytesText(uint64(act.BytesRead)), bytesText(uint64(act.BytesWrite)))
		}
		a.printf("\n")
		if err := a.emit("plan", object{"op": act.Op.String(), "read": act.BytesRead, "write": act.BytesWrite}.setPath("path", act.Path)); err != nil {
			a.errorf("%v", err)
		}
	}
	return o
}

func (a *app) restoreSummary(t restore.Totals, dry bool, seconds float64, receipt string) error {
	verb := "restored"
	if dry {
		verb = "would restore"
	}
	n := func(v int64) string { return countText(uint64(v)) }
	a.sayf("%s: %s created, %s changed, %s metadata, %s deleted, %s kept; %s files of %s in all", verb,
		n(t.Created), n(t.Changed), n(t.Meta), n(t.Deleted), n(t.Kept), n(t.Files), bytesText(uint64(t.Bytes)))
	if dry {
		a.sayf("  %s to read, %s to write", bytesText(uint64(t.BytesRead)), bytesText(uint64(t.BytesWrite)))
	} else {
		a.sayf("  %s read, %s written in %.1fs", bytesText(uint64(t.BytesRead)), bytesText(uint64(t.BytesWrite)), seconds)
	}
	if receipt != "" {
		a.sayf("  receipt: %s", receipt)
	}
	return a.emit("restore", object{"dry_run": dry, "created": t.Created, "changed": t.Changed, "meta": t.Meta, "deleted": t.Deleted, "kept": t.Kept,
		"problems": t.Problems, "files": t.Files, "bytes": t.Bytes, "read": t.BytesRead, "written": t.BytesWrite, "seconds": seconds, "receipt": receipt})
}

// receiptFile becomes a receipt when it is whole.
type receiptFile struct {
	*os.File
	final string
}

func (a *app) openReceipt(s *restoreFlags, rec *repo.Snapshot) (*receiptFile, error) {
	if s.noReceipt || s.opt.DryRun {
		return nil, nil
	}
	final := s.receipt
	if final == "" {
		dir, err := receiptDir()
		if err == nil {
			err = os.MkdirAll(dir, 0o700)
		}
		if err != nil {
			a.warnf("no receipt is kept: %v; --receipt names a file", err)
			return nil, nil
		}
		final = filepath.Join(dir, strings.ReplaceAll(now().UTC().Format("2006-01-02T15.04.05.000000Z"), ":", ".")+"-"+rec.ID.String()[:8]+".jsonl")
	}
	f, err := os.OpenFile(final+".part", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	return &receiptFile{f, final}, nil
}

// closeReceipt keeps the receipt of a restore that came to its end, and
// returns its name.
func closeReceipt(f *receiptFile, err error) (string, error) {
	if f == nil {
		return "", nil
	}
	var problems *restore.ProblemsError
	whole := err == nil || errors.As(err, &problems)
	serr := f.Sync()
	if cerr := f.Close(); serr == nil {
		serr = cerr
	}
	if !whole || serr != nil {
		os.Remove(f.Name())
		return "", serr
	}
	return f.final, os.Rename(f.Name(), f.final)
}

var _ io.Writer = (*receiptFile)(nil)
