package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// importers are the kinds whose own files can be taken in.
func importers() []string {
	var names []string
	for _, k := range kinds {
		if k.Import != nil {
			names = append(names, k.Name)
		}
	}
	return names
}

func (a *app) importCommand() *cobra.Command {
	var s snapshotFlags
	c := &cobra.Command{
		Use:   "import KIND FILE...",
		Short: "Take in the archives that a system's own tools have written",
		Long: `import keeps a snapshot of each FILE, which the tools of KIND have written, as if it
had been made then: it has the time that the file tells, or where that is to come the
time when FILE was written. KIND is ` + strings.Join(importers(), " or ") + `.

A file that was taken in under the same name before is not taken in again. One that
is damaged is named, and nothing of it is kept; the others are taken in, and the
exit code is 1.`,
		Example: `  cutbank import -r /backup consul --name prod /var/backups/consul-*.snap`,
		Args:    between(2, -1, "KIND and one FILE or more"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return importers(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("name") {
				s.name = defaultName() + "-" + args[0]
			}
			return a.importFiles(c.Context(), &s, args[0], args[1:])
		},
	}
	f := c.Flags()
	s.compression = "fastest"
	a.heartbeat = repo.DefaultHeartbeat
	f.StringVar(&s.scratch, "scratch", "", "directory for temporary files (default: TMPDIR, or in the folder for local state)")
	f.StringVar(&s.name, "name", "", "what the snapshots are called (default: as those of --system KIND)")
	f.StringVar(&s.note, "note", "", "a note for people")
	f.StringSliceVar(&s.tags, "tag", nil, "a tag; repeatable")
	s.mode = snapshotter.Full
	return c
}

func (a *app) importFiles(ctx context.Context, s *snapshotFlags, kind string, files []string) error {
	k := findKind(kind)
	if k == nil || k.Import == nil {
		return usagef("%q has no files that can be taken in: use %s", kind, strings.Join(importers(), ", "))
	}
	if err := s.check(a); err != nil {
		return err
	}
	r, err := a.anyRepo(ctx)
	if err != nil {
		return err
	}
	known, err := imported(ctx, r, s.name, k.Name)
	if err != nil {
		return err
	}
	bad := 0
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := a.importFile(ctx, s, r, k, f, known)
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err != nil {
			a.errorf("%s: %v", quote(f), err)
			bad++
		}
	}
	if bad > 0 {
		return &wrapped{fmt.Sprintf("%d of %d files were not taken in", bad, len(files)), system.ErrIncomplete}
	}
	return nil
}

// imported maps what the snapshots of a name say of their system to their IDs.
func imported(ctx context.Context, r *repo.Repo, name, kind string) (map[string]*repo.Snapshot, error) {
	list, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]*repo.Snapshot{}
	for _, rec := range list {
		info, err := system.ParseInfo(rec.System)
		if rec.Name == name && rec.ModeName() == snapshotter.Full && err == nil && info.Kind == kind {
			known[identity(info)] = rec
		}
	}
	return known, nil
}

// identity is all that a record says of its system, but what is told of how it was
// reached.
func identity(i system.Info) string {
	parts := []string{i.Version, i.Cluster}
	for _, k := range slices.Sorted(maps.Keys(i.Facts)) {
		parts = append(parts, k+"="+i.Facts[k])
	}
	return strings.Join(parts, "\x00")
}

func (a *app) importFile(ctx context.Context, s *snapshotFlags, r *repo.Repo, k *system.Kind, file string, known map[string]*repo.Snapshot) error {
	scratch, state, done, err := a.systemDirs(s.scratch)
	if err != nil {
		return err
	}
	defer done()
	capture, made, err := k.Import(ctx, file, system.CaptureOptions{Name: s.name, Mode: system.Full, Scratch: scratch, State: state, Now: now, Warnf: a.warnf, Logf: a.logf})
	if err != nil {
		return err
	}
	info, err := capture.Finish(ctx)
	if err != nil {
		return closeAfter(ctx, capture, err)
	}
	if rec := known[identity(info)]; rec != nil {
		a.sayf("%s: is %s already", quote(file), snapshotName(rec))
		return closeAfter(ctx, capture, a.emit("known", object{"file": file, "id": rec.ID.String(), "name": snapshotName(rec)}))
	}
	rec, err := a.keepCapture(ctx, s, r, capture, func() time.Time { return made })
	if rec != nil {
		known[identity(info)] = rec
	}
	return err
}

func closeAfter(ctx context.Context, c system.Capture, err error) error {
	if cerr := c.Close(context.WithoutCancel(ctx), false); err == nil {
		err = cerr
	}
	return err
}
