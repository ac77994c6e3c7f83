package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
)

// mark says something of snapshots, but not of those of which it is so already.
// Did says it of one in a word.
func (a *app) mark(ctx context.Context, args []string, m repo.Mark, so func(*repo.Snapshot) bool, did string) error {
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	snaps, damage := r.Snapshots(ctx)
	chosen, err := pick(snaps, args)
	if err != nil {
		return withDamage(err, damage)
	}
	for _, s := range chosen {
		// Where a mark cannot be read nobody knows what is so.
		changed := s.MarkErr != nil || !so(s)
		if changed {
			if err := r.AddMark(ctx, s.ID, m); err != nil {
				return err
			}
			a.sayf("%s %s", snapshotName(s), did)
		} else {
			a.sayf("%s %s already", snapshotName(s), did)
		}
		o := object{"id": s.ID.String(), "name": s.Name, "dir": s.Dir, "op": m.Op, "changed": changed}
		if m.Value != "" {
			o["value"] = m.Value
		}
		if !m.Until.IsZero() {
			o["until"] = m.Until
		}
		if err := a.emit("mark", o); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) pinCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pin SNAPSHOT...",
		Short: "Let no rule remove a snapshot",
		Long: `pin lets a snapshot stay until it is unpinned: whatever rules forget is given,
whenever it expires, and also if it is named.`,
		Example: `  cutbank pin -r /backup web/latest
  cutbank pin -r /backup 4f3a9c 81d2aa`,
		Args: between(1, -1, "one SNAPSHOT or more"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.mark(c.Context(), args, repo.Mark{Op: repo.MarkPin}, func(s *repo.Snapshot) bool { return s.Pinned }, "is pinned")
		},
	}
}

func (a *app) unpinCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "unpin SNAPSHOT...",
		Short:   "Take back pin",
		Long:    `unpin lets the rules of forget, and an expiry, remove a snapshot again.`,
		Example: `  cutbank unpin -r /backup 4f3a9c`,
		Args:    between(1, -1, "one SNAPSHOT or more"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.mark(c.Context(), args, repo.Mark{Op: repo.MarkUnpin}, func(s *repo.Snapshot) bool { return !s.Pinned }, "is not pinned")
		},
	}
}

type expireFlags struct {
	at, in string
	never  bool
}

func (a *app) expireCommand() *cobra.Command {
	var s expireFlags
	c := &cobra.Command{
		Use:   "expire SNAPSHOT...",
		Short: "Say until when a snapshot is needed",
		Long: `expire gives snapshots a time of their own. Until then they stay, whatever rules
forget is given, and the rules do not count them; after it the next forget, with
rules or with --expired, removes them, unless they are pinned. --never takes it
back: the rules count again.

--at takes a date, or a date with a time; times without a zone are UTC. --in takes
a span from now, such as 12h, 30d or 8w.`,
		Example: `  cutbank expire -r /backup web/latest --in 30d
  cutbank expire -r /backup 4f3a9c --at 2027-01-01
  cutbank expire -r /backup 4f3a9c --never
  cutbank forget -r /backup --expired`,
		Args: between(1, -1, "one SNAPSHOT or more"),
		RunE: func(c *cobra.Command, args []string) error {
			until, err := s.until(now())
			if err != nil {
				return err
			}
			did := "never expires"
			if !until.IsZero() {
				did = "expires " + until.Format(repo.TimeLayout)
			}
			return a.mark(c.Context(), args, repo.Mark{Op: repo.MarkExpire, Until: until}, func(s *repo.Snapshot) bool { return s.Expires.Equal(until) }, did)
		},
	}
	f := c.Flags()
	f.StringVar(&s.at, "at", "", "a `TIME`, such as 2027-01-01 or 2027-01-01T18:00:00Z")
	f.StringVar(&s.in, "in", "", "a `SPAN` from now, such as 30d")
	f.BoolVar(&s.never, "never", false, "no longer expire")
	return c
}

// until is when the snapshots expire; zero is never.
func (s *expireFlags) until(at time.Time) (time.Time, error) {
	var zero time.Time
	given := 0
	for _, is := range []bool{s.at != "", s.in != "", s.never} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return zero, usagef("expire takes one of --at TIME, --in SPAN and --never")
	case s.never:
		return zero, nil
	case s.in != "":
		d, err := parseSpan(s.in)
		if err != nil {
			return zero, usagef("--in: %v", err)
		}
		return at.Add(d).UTC().Truncate(time.Second), nil
	}
	if _, ok := parseAge(s.at); ok {
		return zero, usagef("--at takes a time: for a span from now give --in %s", s.at)
	}
	w, err := parseWhen(s.at, at)
	if err != nil {
		return zero, usagef("--at: %q is no time: write it like 2027-01-01 or 2027-01-01T18:00:00Z", s.at)
	}
	if t := w.Time(); t.After(at) {
		return t, nil
	}
	return zero, usagef("--at %s is past: to remove a snapshot now, name it to `cutbank forget`", s.at)
}
