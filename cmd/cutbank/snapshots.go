package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter"
)

func (a *app) snapshotsCommand() *cobra.Command {
	var names, tags []string
	c := &cobra.Command{
		Use:   "snapshots",
		Short: "List the snapshots, oldest first",
		Long: `snapshots lists what there is, oldest first. SIZE is what the files hold, NEW what
was not known before, STORED what that took in the repository. KEPT tells what is
pinned, and when it expires.`,
		Example: `  cutbank snapshots -r /backup
  cutbank snapshots -r /backup --name db --json`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.repo(c.Context())
			if err != nil {
				return err // a write-only credential's too: an empty list would say that there is nothing
			}
			snaps, damage := r.Snapshots(c.Context())
			snaps = choose(snaps, names, tags)
			for _, s := range snaps {
				if err := a.emit("snapshot", snapshotObject(s)); err != nil {
					return err
				}
			}
			if err := a.table(func(w *tabwriter.Writer) { snapshotTable(w, snaps) }); err != nil {
				return err
			}
			if len(snaps) == 0 && damage == nil {
				a.sayf("no snapshots: `cutbank snapshot PATH` makes one")
			}
			return damage
		},
	}
	c.Flags().StringSliceVar(&names, "name", nil, "only snapshots of this name; repeatable")
	c.Flags().StringSliceVar(&tags, "tag", nil, "only snapshots with this tag; repeatable")
	return c
}

// choose keeps the snapshots that have one of the names and one of the tags.
func choose(snaps []*repo.Snapshot, names, tags []string) []*repo.Snapshot {
	var chosen []*repo.Snapshot
	for _, s := range snaps {
		if overlap(names, []string{s.Name}) && overlap(tags, s.Tags) {
			chosen = append(chosen, s)
		}
	}
	return chosen
}

// overlap reports whether some wanted string is there; all is wanted if none
// is.
func overlap(wanted, there []string) bool {
	for _, w := range wanted {
		for _, t := range there {
			if w == t {
				return true
			}
		}
	}
	return len(wanted) == 0
}

func snapshotTable(w *tabwriter.Writer, snaps []*repo.Snapshot) {
	if len(snaps) == 0 {
		return
	}
	fmt.Fprintln(w, "ID\tNAME\tTIME\tLABEL\tFILES\tSIZE\tNEW\tSTORED\tTAGS\tKEPT\tPATHS")
	for _, s := range snaps {
		var paths []string
		for _, p := range s.Paths {
			paths = append(paths, quote(string(p)))
		}
		if text := systemText(s.System); text != "" {
			paths = []string{text}
		}
		state := ""
		if s.Unread > 0 {
			state = " (partial)"
		}
		if s.ModeName() != snapshotter.Full {
			state += " (" + s.Mode + ")"
		}
		if s.Repairs != nil {
			state += " (repaired)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s%s\n", s.ID.String()[:8], s.Name, s.Dir, s.Label, countText(s.Totals.Files), bytesText(s.Totals.Bytes),
			bytesText(s.Stats.NewBytes), bytesText(s.Stats.Stored), strings.Join(s.Tags, ","), keptText(s), strings.Join(paths, " "), state)
	}
}

// keptText tells what was said of how long a snapshot stays.
func keptText(s *repo.Snapshot) string {
	switch {
	case s.Pinned:
		return "pinned"
	case !s.Expires.IsZero():
		return "until " + s.Expires.UTC().Format(repo.TimeLayout)
	}
	return ""
}

// snapshotObject is a snapshot as --json tells it.
func snapshotObject(s *repo.Snapshot) object {
	paths := []object{}
	for _, p := range s.Paths {
		paths = append(paths, object{}.setPath("path", string(p)))
	}
	tags := s.Tags
	if tags == nil {
		tags = []string{}
	}
	o := object{"id": s.ID.String(), "name": s.Name, "time": s.Time, "end": s.End, "dir": s.Dir, "label": s.Label, "note": s.Note, "tags": tags, "host": s.Host,
		"paths": paths, "files": s.Totals.Files, "dirs": s.Totals.Dirs, "bytes": s.Totals.Bytes, "new_bytes": s.Stats.NewBytes, "stored": s.Stats.Stored,
		"partial": s.Unread > 0, "unread": s.Unread, "changed": s.Changed, "tree": s.Tree.String(), "pinned": s.Pinned}
	if s.Mode != "" {
		o["mode"] = s.Mode
	}
	if len(s.System) > 0 {
		o["system"] = s.System
	}
	if len(s.Data) > 0 {
		o["data"] = s.Data
	}
	if !s.Expires.IsZero() {
		o["expires"] = s.Expires
	}
	return o
}
