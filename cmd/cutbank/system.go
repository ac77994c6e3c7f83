package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/restore"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// behindDash splits a command line at "--".
func behindDash(c *cobra.Command, args []string) (before, behind []string) {
	if at := c.ArgsLenAtDash(); at >= 0 {
		return args[:at], args[at:]
	}
	return args, nil
}

// unheard has the process go on, until it is ended, where nobody reads any more what it
// prints, as with "cutbank ... | head -1": a system would stay as a hook has left it.
func unheard() (end func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGPIPE) // not ignored: so it would be in the commands, too
	return func() { signal.Stop(c) }
}

// snapshotSystem keeps a snapshot of a running system.
func (a *app) snapshotSystem(ctx context.Context, c *cobra.Command, s *snapshotFlags, args []string) error {
	before, options := behindDash(c, args)
	for _, flag := range []string{"stdin", "exclude", "exclude-file", "one-file-system"} {
		if c.Flags().Changed(flag) {
			return usagef("--%s is for directories, not for --system", flag)
		}
	}
	k, sys, err := openSystem(s.system, options, true)
	if err != nil {
		return err
	}
	if len(before) > 0 {
		return usagef("--system %s takes no PATH, but %q is one; options of the system stand behind --", k.Name, before[0])
	}
	if !k.Has(system.Mode(s.mode)) {
		return usagef("--mode %q: %s has %s", s.mode, k.Name, modesText(k))
	}
	if len(s.data) > 0 && s.mode != snapshotter.Light {
		return usagef("--data is for --mode light")
	}
	if !c.Flags().Changed("name") {
		s.name = defaultName() + "-" + k.Name
	}
	if err := s.check(a); err != nil {
		return err
	}
	defer unheard()()
	// Nothing is asked of a system whose snapshot could not be kept.
	r, err := a.anyRepo(ctx)
	if err != nil {
		return err
	}
	if err := r.MayWrite(ctx, s.name); err != nil {
		return err
	}
	scratch, state, done, err := a.systemDirs(s.scratch)
	if err != nil {
		return err
	}
	defer done()
	capture, err := sys.Capture(ctx, system.CaptureOptions{Name: s.name, Mode: system.Mode(s.mode), Data: s.data, Scratch: scratch, State: state,
		Now: now, Warnf: a.warnf, Logf: a.logf})
	if err != nil {
		return fmt.Errorf("nothing was stored: %w", err)
	}
	_, err = a.keepCapture(ctx, s, r, capture, nil)
	return err
}

// keepCapture stores what was captured, and releases it in any case. made says when it
// was made; nil: now.
func (a *app) keepCapture(ctx context.Context, s *snapshotFlags, r *repo.Repo, capture system.Capture, made func() time.Time) (*repo.Snapshot, error) {
	own := &filter{}
	if live, ok := capture.(system.Live); ok && live.Live() != "" {
		own.mode, own.roots = s.mode, make([]filterRoot, 1)
		own.keepData(&own.roots[0], strings.TrimPrefix(live.Live(), "/"), s.data)
	}
	own.forget(a.repoPath)
	if dir, err := a.stateDir(); err == nil {
		own.forget(dir)
	}
	own.forgetMounts()
	finish := func(ctx context.Context, rec *repo.Snapshot) error {
		info, err := capture.Finish(ctx)
		if err != nil {
			return err
		}
		if rec.Unread > 0 {
			return fmt.Errorf("%d paths could not be read, and half a system is no snapshot: %w", rec.Unread, system.ErrIncomplete)
		}
		rec.System, err = json.Marshal(info)
		return err
	}
	rec, err := a.keep(ctx, s, r, kept{root: capture.Root(), paths: []string{"/"}, filter: own, finish: finish, made: made})
	if cerr := capture.Close(context.WithoutCancel(ctx), rec != nil); cerr != nil {
		a.errorf("%v", cerr)
		if err == nil {
			err = &wrapped{"the snapshot is kept, but the system was not left as it should be", cerr}
		}
	}
	return rec, err
}

// systemDirs returns scratch space, which done removes, and the directory of what
// outlives the run.
func (a *app) systemDirs(parent string) (scratch, state string, done func(), err error) {
	if state, err = a.localDir("systems"); err != nil {
		return "", "", nil, err
	}
	if parent == "" {
		parent = os.Getenv("TMPDIR")
	}
	if parent == "" {
		if parent, err = a.localDir("scratch"); err != nil {
			return "", "", nil, err
		}
	}
	if parent, err = filepath.Abs(parent); err != nil {
		return "", "", nil, err
	}
	scratch, done, err = a.scratchDir(parent)
	return scratch, state, done, err
}

// restoreSystem brings a snapshot back into a running system.
func (a *app) restoreSystem(ctx context.Context, c *cobra.Command, s *restoreFlags, args []string) error {
	before, options := behindDash(c, args)
	if len(before) != 1 {
		return usagef("restore --system takes one SNAPSHOT[:PATH] and no TARGET, but there %s; options of the system stand behind --", argumentsText(len(before)))
	}
	k, sys, err := openSystem(s.system, options, false)
	if err != nil {
		return err
	}
	defer unheard()()
	r, err := a.synced(ctx)
	if err != nil {
		return err
	}
	name, p := repo.SplitPath(before[0])
	rec, err := r.Resolve(ctx, name)
	if err != nil {
		return err
	}
	info, err := system.ParseInfo(rec.System)
	if err != nil {
		return err
	}
	switch {
	case info.Kind == "":
		return fmt.Errorf("%wsnapshot %s is of files, not of a system: `cutbank restore %s TARGET` brings it back", errRefused, snapshotName(rec), snapshotName(rec))
	case info.Kind != k.Name:
		return fmt.Errorf("%wsnapshot %s is of %s, not of %s: use --system %s", errRefused, snapshotName(rec), quote(info.Kind), k.Name, quote(info.Kind))
	case cleanPath(p) != "" && !k.Selective:
		return usagef("of %s no path is restored by itself: give the SNAPSHOT without one; `cutbank systems %s` says whether options choose a part", k.Name, k.Name)
	}
	root, err := snapfs.NewCache(r.Store()).Open(ctx, rec.Tree.ID)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", snapshotName(rec), err)
	}
	scratch, state, done, err := a.systemDirs(s.scratch)
	if err != nil {
		return err
	}
	defer done()
	opt := system.RestoreOptions{Name: snapshotName(rec), Mode: system.Mode(rec.ModeName()), Path: cleanPath(p), Force: s.force, DryRun: s.opt.DryRun,
		AllowRelease: s.allowRelease, AllowOtherCluster: s.allowCluster, Scratch: scratch, State: state, Now: now, Warnf: a.warnf, Logf: a.logf, Stepf: a.restoreStep,
		Unpack: a.unpack}
	start := now()
	res, err := sys.Restore(ctx, root, info, opt)
	if err != nil && ctx.Err() != nil {
		return &wrapped{fmt.Sprintf("interrupted: %v; the system may have a part of the snapshot, run again to have all of it", err), errInterrupted}
	}
	if err != nil {
		return err
	}
	return a.systemRestored(k, opt.DryRun, res, now().Sub(start).Seconds())
}

// restoreStep tells one thing that is done, or would be.
func (a *app) restoreStep(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	a.sayf("%s", visible(text))
	if err := a.emit("step", object{"do": text}); err != nil {
		a.errorf("%v", err)
	}
}

func (a *app) systemRestored(k *system.Kind, dry bool, res system.Result, seconds float64) error {
	verb := "restored"
	if dry {
		verb = "would restore"
	}
	a.sayf("%s: %s items, %s", verb, countText(res.Items), bytesText(res.Bytes))
	for _, n := range res.Notes {
		a.sayf("  to do: %s", visible(n))
	}
	return a.emit("system-restore", object{"kind": k.Name, "dry_run": dry, "items": res.Items, "bytes": res.Bytes, "notes": append([]string{}, res.Notes...), "seconds": seconds})
}

// unpack makes a directory hold what n holds, and nothing else.
func (a *app) unpack(ctx context.Context, n tree.Node, dir string) error {
	var problems []string
	opt := restore.Options{Overwrite: restore.Always, Delete: true, Yes: true, Sum: a.open.SecretKeys().Data.Sum, Spare: a.spare(),
		Prefetch: func(_ context.Context, ids []chunk.ID) { a.open.Store().Prefetch(ids) },
		Observer: restore.Observer{Problem: func(path string, err error) {
			problems = append(problems, path)
			a.errorf("%s: %v", quote(path), err)
		}}}
	_, err := restore.Run(ctx, []restore.Item{{Node: n}}, dir, opt)
	var many *restore.ProblemsError
	if errors.As(err, &many) {
		return fmt.Errorf("%d files could not be brought into %s, such as %s: %w", many.Count, quote(dir), quote(strings.Join(problems[:min(1, len(problems))], "")), err)
	}
	return err
}
