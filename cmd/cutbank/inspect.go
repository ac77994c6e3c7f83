package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect SNAPSHOT|OBJECT",
		Short: "Show a snapshot's record",
		Long: `inspect shows all that a snapshot's record says. What begins with page: can be
given to "cutbank cat-object", which goes on down: from the record to the pages of
its tree, to chunks, to the frames and packs that hold them. Objects of the
repository are shown as cat-object shows them.`,
		Example: `  cutbank inspect -r /backup latest
  cutbank inspect -r /backup web/latest --json
  cutbank cat-object -r /backup page:5fd1...`,
		Args: exactly(1, "one SNAPSHOT or OBJECT"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.buffered(func() error { return a.inspect(c.Context(), args[0]) })
		},
	}
}

func (a *app) inspect(ctx context.Context, arg string) error {
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	rec, err := r.Resolve(ctx, arg)
	if errors.Is(err, fs.ErrNotExist) && isObjectName(arg) {
		return a.catObject(ctx, &objectFlags{frame: -1}, arg)
	}
	if err != nil {
		return err
	}
	if a.json {
		p, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		return a.emit("record", object{"record": json.RawMessage(p), "dir": rec.Dir, "tags": append([]string{}, rec.Tags...), "pinned": rec.Pinned,
			"writer": rec.Writer, "stored_at": rec.ModTime})
	}
	a.printRecord(rec)
	return nil
}

// printRecord prints what a record holds, and what was said of it later.
func (a *app) printRecord(s *repo.Snapshot) {
	line := func(key, value string) {
		if value != "" {
			a.printf("%-10s %s\n", key, value)
		}
	}
	when := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339Nano)
	}
	line("object", "snapshots/"+s.ID.String())
	line("name", s.Name)
	line("dir", snapshotName(s))
	line("label", s.Label)
	line("note", quote(s.Note))
	line("tags", strings.Join(s.Tags, " "))
	line("time", when(s.Time))
	line("end", when(s.End))
	line("host", quote(s.Host))
	line("program", quote(s.Program))
	line("writer", s.Writer)
	for _, p := range s.Paths {
		line("path", quote(string(p)))
	}
	for _, e := range s.Exclude {
		line("exclude", quote(e))
	}
	if s.Parent != nil {
		line("parent", s.Parent.String())
	}
	if s.Origin != nil {
		line("copy of", fmt.Sprintf("%s of repository %s", s.Origin.ID, s.Origin.Repo))
	}
	line("tree", pageName(s.Tree))
	line("witness", pageName(s.Witness))
	t := s.Totals
	line("holds", fmt.Sprintf("%s files, %s directories, %s names, %d bytes", countText(t.Files), countText(t.Dirs), countText(t.Nodes), t.Bytes))
	st := s.Stats
	line("files", fmt.Sprintf("%s new, %s modified, %s unchanged", countText(st.New), countText(st.Modified), countText(st.Unchanged)))
	line("cost", fmt.Sprintf("%d bytes read, %d new, %d stored", st.ReadBytes, st.NewBytes, st.Stored))
	if s.Changed > 0 {
		line("changed", countText(s.Changed)+" files while they were read")
	}
	if s.Unread > 0 {
		line("unread", countText(s.Unread)+" paths")
	}
	for _, p := range s.Problem {
		line("problem", quote(p))
	}
	line("mode", s.Mode)
	for _, d := range s.Data {
		line("data", quote(d))
	}
	if len(s.System) > 0 {
		a.printSystem(line, s.System)
	}
	for _, m := range s.Members {
		line("member", fmt.Sprintf("%s %s %s", quote(m.Name), m.State, pageName(m.Tree)))
	}
	if s.Pinned {
		line("pinned", "yes")
	}
	line("expires", when(s.Expires))
	line("stored", when(s.ModTime))
	for key, v := range s.Extra {
		line(quote(key), string(v))
	}
}

// printSystem prints what a system said of itself.
func (a *app) printSystem(line func(key, value string), raw json.RawMessage) {
	info, err := system.ParseInfo(raw)
	if err != nil {
		line("system", quote(string(raw)))
		return
	}
	line("system", quote(info.Kind))
	line("version", quote(info.Version))
	line("cluster", quote(info.Cluster))
	for _, key := range slices.Sorted(maps.Keys(info.Facts)) {
		line("fact", quote(key)+": "+quote(info.Facts[key]))
	}
}

// pageName is a page as cat-object takes it.
func pageName(p repo.PageID) string {
	if p.IsZero() {
		return ""
	}
	return "page:" + p.String()
}
