package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter"
)

type forgetFlags struct {
	last, hourly, daily, weekly, monthly, yearly countFlag

	within                                  string
	buckets, tags                           []string // to keep
	names, hosts, tagged                    []string // to judge
	expired, dryRun, allowEmpty, trustDates bool
	prune, damaged                          bool
}

func (a *app) forgetCommand() *cobra.Command {
	var s forgetFlags
	c := &cobra.Command{
		Use:   "forget [SNAPSHOT...]",
		Short: "Remove snapshots: those named, or those that no rule keeps",
		Long: `forget removes the SNAPSHOTs, or, by rules, all that no rule keeps. What only they
needed is freed by the next prune. --dry-run prints why each snapshot stays or
goes. A SNAPSHOT that shares its second with another of its name is named by its ID,
as its TIME changes when the other goes.

--keep-daily N keeps the newest snapshot of each of the last N days that have any;
the same for hours, weeks (from Monday), months and years, all in UTC. --keep
takes widths: 3/1h,4/4h,4/1d,2/1w is the newest of each of three hours, four times
four hours, four days and two weeks. Instead of a number there may be a span, such
as 2d/1h for one an hour as far back as two days, or "all". --keep-within and
spans count from the newest snapshot of its kind. Rules add up, and may be run as
often as one likes: what is left is the same.

Rules are applied to each snapshot name by itself, and within it to each writer and
each mode: a light or dataless snapshot takes no full one's place. Neither does a
partial one that of a complete one: each rule keeps as many of the complete ones as
well. Pinned snapshots stay, those whose expiry has passed go,
and those that will expire stay until then and are not counted. Neither are those
dated in the future, nor those that a writer other than the owner dated more than
a day before they were stored: they stay until they are named, for their dates are
not believed.

If the rules would leave nothing of a name, forget refuses.`,
		Example: `  cutbank forget -r /backup --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run
  cutbank forget -r /backup --keep 3/1h,4/4h,4/1d,2/1w --keep-tag release --prune
  cutbank forget -r /backup --name db --keep-within 30d
  cutbank forget -r /backup --expired
  cutbank forget -r /backup 4f3a9c web/2026-11-21T10.00.00Z`,
		Args: between(0, -1, "SNAPSHOTs"),
		RunE: func(c *cobra.Command, args []string) error { return a.forget(c.Context(), &s, args) },
	}
	f := c.Flags()
	f.VarP(&s.last, "keep-last", "l", "keep the N newest")
	f.VarP(&s.hourly, "keep-hourly", "H", "keep the newest of N hours")
	f.VarP(&s.daily, "keep-daily", "d", "keep the newest of N days")
	f.VarP(&s.weekly, "keep-weekly", "w", "keep the newest of N weeks")
	f.VarP(&s.monthly, "keep-monthly", "m", "keep the newest of N months")
	f.VarP(&s.yearly, "keep-yearly", "y", "keep the newest of N years")
	f.StringVar(&s.within, "keep-within", "", "keep all that are at most a `SPAN` older than the newest, such as 30d")
	f.StringSliceVar(&s.buckets, "keep", nil, "keep the newest of N spans of a width: N/WIDTH; repeatable")
	f.StringSliceVar(&s.tags, "keep-tag", nil, "keep what has this tag; repeatable")
	f.StringSliceVar(&s.names, "name", nil, "judge only snapshots of this name; repeatable")
	f.StringSliceVar(&s.hosts, "host", nil, "judge only snapshots of this host; repeatable")
	f.StringSliceVar(&s.tagged, "tag", nil, "judge only snapshots with this tag; repeatable")
	f.BoolVar(&s.expired, "expired", false, "remove what has expired, and nothing else if there are no rules")
	f.BoolVar(&s.trustDates, "trust-dates", false, "believe the dates of all writers (if the storage has lost its own)")
	f.BoolVar(&s.allowEmpty, "allow-empty", false, "let the rules leave nothing of a name")
	f.BoolVarP(&s.dryRun, "dry-run", "n", false, "print why each snapshot stays or goes, and change nothing")
	f.BoolVar(&s.damaged, "damaged", false, "give up records that cannot be read, named by their whole IDs as verify prints them")
	f.BoolVar(&s.prune, "prune", false, "prune afterwards")
	return c
}

// countFlag is a flag for how many are kept: a number, or all.
type countFlag int

func (f *countFlag) Type() string { return "N" }

func (f *countFlag) String() string {
	switch {
	case f == nil || *f == 0:
		return ""
	case *f == repo.All:
		return "all"
	}
	return strconv.Itoa(int(*f))
}

func (f *countFlag) Set(s string) error {
	if s == "all" {
		*f = repo.All
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return fmt.Errorf("%q is no count: give a number, or all", s)
	}
	*f = countFlag(n)
	return nil
}

// policy reads the rules; it is empty if there is none.
func (s *forgetFlags) policy() (p repo.Policy, empty bool, err error) {
	p = repo.Policy{Last: int(s.last), Hourly: int(s.hourly), Daily: int(s.daily), Weekly: int(s.weekly), Monthly: int(s.monthly), Yearly: int(s.yearly),
		KeepTags: s.tags, TrustDates: s.trustDates}
	if s.within != "" {
		if p.Within, err = parseSpan(s.within); err != nil {
			return p, false, usagef("--keep-within: %v", err)
		}
	}
	for _, b := range s.buckets {
		bucket, err := parseBucket(b)
		if err != nil {
			return p, false, usagef("--keep %v", err)
		}
		p.Buckets = append(p.Buckets, bucket)
	}
	return p, p.Empty(), nil
}

// parseBucket reads N/WIDTH, where N may be a number, a span, or all.
func parseBucket(s string) (b repo.Bucket, err error) {
	much, width, ok := strings.Cut(s, "/")
	if !ok {
		return b, fmt.Errorf("%q: write it like 4/1d, 2d/1h or all/1w", s)
	}
	if b.Width, err = parseSpan(width); err != nil {
		return b, fmt.Errorf("%q: %w", s, err)
	}
	if _, nerr := strconv.Atoi(much); nerr == nil || much == "all" {
		var n countFlag
		if err := n.Set(much); err != nil {
			return b, fmt.Errorf("%q: %w", s, err)
		}
		b.Count = int(n)
		return b, nil
	}
	if b.Within, err = parseSpan(much); err != nil {
		return b, fmt.Errorf("%q: %w", s, err)
	}
	return b, nil
}

// parseSpan reads a span of time, longer than none.
func parseSpan(s string) (time.Duration, error) {
	if s != "" {
		if d, ok := parseAge(s); ok && d > 0 {
			return d, nil
		}
	}
	return 0, fmt.Errorf("%q is no span of time: write it like 90m, 12h, 3d or 2w", s)
}

func (a *app) forget(ctx context.Context, s *forgetFlags, args []string) error {
	p, empty, err := s.policy()
	filtered := len(s.names)+len(s.hosts)+len(s.tagged) > 0
	switch {
	case err != nil:
		return err
	case len(args) > 0 && (!empty || s.expired || filtered):
		return usagef("forget takes SNAPSHOTs, or rules for all of them, but not both")
	case s.damaged && len(args) == 0:
		return usagef("forget --damaged takes whole IDs; `cutbank verify` prints them")
	case len(args) == 0 && empty && !s.expired:
		return usagef("forget takes SNAPSHOTs, --expired, or a rule for what to keep, such as --keep-daily 7; see `cutbank forget --help`")
	}
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	if k := r.SecretKeys(); !s.dryRun && k.Self() != k.Owner() {
		_, err := r.Forget(ctx, nil) // says why not, also where nothing is to go
		return err
	}
	if s.damaged {
		return a.forgetDamaged(ctx, r, args, s.dryRun)
	}
	all, damage := r.Snapshots(ctx)
	if err := r.DoubtMarks(ctx, all); err != nil {
		return err
	}
	var ds []repo.Decision
	if len(args) > 0 {
		ds, err = a.named(all, damage, args)
	} else {
		if damage != nil {
			a.warnf("%v; what cannot be read stays", damage)
		}
		p.Owner = r.SecretKeys().Owner().String()
		ds = repo.Decide(chooseHosts(choose(all, s.names, s.tagged), s.hosts), p, now())
		if groups := repo.Emptied(all, ds); len(groups) > 0 && !s.allowEmpty {
			err = emptied(groups)
		}
	}
	if ds == nil && err != nil {
		return err
	}
	sortDecisions(ds)
	if err := errors.Join(a.printDecisions(ds, s.dryRun || err != nil && !a.quiet), err); err != nil {
		return err
	}
	if err := a.carryOut(ctx, r, ds, s.dryRun, s.prune); err != nil {
		return err
	}
	if s.prune && !s.dryRun {
		if err := a.prune(ctx, &pruneFlags{grace: spanFlag(repo.DefaultGrace), maxRepack: "unlimited"}); err != nil {
			return err
		}
	}
	if len(args) > 0 {
		return nil // what is damaged was not asked for
	}
	return damage
}

// forgetDamaged gives up records of which nothing but the ID is known. Those that
// can be read are forgotten by the plain command, which knows of pins.
func (a *app) forgetDamaged(ctx context.Context, r *repo.Repo, args []string, dry bool) error {
	all, damage := r.Snapshots(ctx)
	var ids []repo.ID
	for _, arg := range args {
		id, ok := repo.ParseID(strings.TrimPrefix(arg, "snapshots/"))
		if !ok {
			return usagef("%q is no whole ID: `cutbank verify` prints those of damaged records", arg)
		}
		if slices.ContainsFunc(all, func(s *repo.Snapshot) bool { return s.ID == id }) {
			return fmt.Errorf("%wsnapshot %s can be read, nothing was forgotten: leave out --damaged", errRefused, id)
		}
		if damage == nil || !strings.Contains(damage.Error(), id.String()) {
			return fmt.Errorf("no damaged record %s: %w; `cutbank verify` tells which there are", id, fs.ErrNotExist)
		}
		ids = append(ids, id)
	}
	if dry {
		for _, id := range ids {
			a.sayf("would give up snapshot %s, which cannot be read", id)
		}
		return a.emit("forget", object{"dry_run": true, "snapshots": len(ids), "kept": 0, "forgotten": len(ids), "hidden": 0, "doubted": 0})
	}
	res, err := r.Forget(ctx, ids)
	a.sayf("gave up %d snapshots that could not be read", len(res.Removed)+len(res.Hidden))
	return errors.Join(err, a.emit("forget", object{"dry_run": false, "snapshots": len(ids), "kept": len(ids) - len(res.Removed) - len(res.Hidden), "forgotten": len(res.Removed) + len(res.Hidden),
		"hidden": len(res.Hidden), "doubted": 0}))
}

// named decides that these go. What was pinned is meant to stay.
func (a *app) named(all []*repo.Snapshot, damage error, args []string) ([]repo.Decision, error) {
	chosen, err := pick(all, args)
	if err != nil {
		return nil, withDamage(err, damage)
	}
	var ds []repo.Decision
	if err := fickle(all, chosen, args); err != nil {
		return nil, err
	}
	for _, s := range chosen {
		if s.Pinned {
			return nil, fmt.Errorf("%w%s is pinned, nothing was forgotten: `cutbank unpin %s` first", errRefused, snapshotName(s), s.ID.String()[:8])
		}
		if s.MarkErr != nil {
			a.warnf("%s may have been pinned: %v", snapshotName(s), s.MarkErr)
		}
		ds = append(ds, repo.Decision{Snapshot: s, Reasons: []string{"named"}})
	}
	return ds, nil
}

// fickle refuses names that would mean another snapshot when these are gone: of
// those that began in the same second the TIME depends on which there are, and who
// repeats the command, or goes on with a list, would remove one too many.
func fickle(all, chosen []*repo.Snapshot, args []string) error {
	second := func(s *repo.Snapshot) string { return s.Time.UTC().Format(repo.TimeLayout) }
	for _, s := range chosen {
		twin := func(x *repo.Snapshot) bool { return x.ID != s.ID && x.Name == s.Name && second(x) == second(s) }
		if slices.Contains(args, snapshotName(s)) && slices.ContainsFunc(all, twin) {
			return usagef("%s is one of several of the same second, and what that name means changes when one of them goes, so nothing was forgotten: name it by its ID, %s", snapshotName(s), s.ID.String()[:8])
		}
	}
	return nil
}

// withDamage adds to an error what else is wrong, which may be its reason.
func withDamage(err, damage error) error {
	if damage != nil {
		return fmt.Errorf("%w; and %w", err, damage)
	}
	return err
}

func chooseHosts(snaps []*repo.Snapshot, hosts []string) []*repo.Snapshot {
	return slices.DeleteFunc(snaps, func(s *repo.Snapshot) bool { return !overlap(hosts, []string{s.Host}) })
}

func emptied(groups []repo.Group) error {
	var names []string
	for _, g := range groups {
		names = append(names, g.Name)
	}
	slices.Sort(names)
	return fmt.Errorf("%wnothing was forgotten: the rules would leave nothing of %s; add a rule such as --keep-last 1, or --allow-empty", errRefused, strings.Join(slices.Compact(names), ", "))
}

// sortDecisions brings together what was judged together.
func sortDecisions(ds []repo.Decision) {
	slices.SortStableFunc(ds, func(a, b repo.Decision) int {
		return cmp.Or(cmp.Compare(a.Snapshot.Name, b.Snapshot.Name), cmp.Compare(a.Snapshot.Writer, b.Snapshot.Writer))
	})
}

// printDecisions prints what goes, and with dry also what stays.
func (a *app) printDecisions(ds []repo.Decision, dry bool) error {
	writers := map[string]string{}
	several, rows := false, 0
	for _, d := range ds {
		s := d.Snapshot
		if err := a.emit("decision", object{"id": s.ID.String(), "name": s.Name, "writer": s.Writer, "time": s.Time, "dir": s.Dir, "host": s.Host, "tags": append([]string{}, s.Tags...),
			"keep": d.Keep, "reasons": d.Reasons, "expired": d.Expired, "doubted": d.Doubted}); err != nil {
			return err
		}
		if w, ok := writers[s.Name]; ok && w != s.Writer {
			several = true
		}
		writers[s.Name] = s.Writer
		if !d.Keep || dry {
			rows++
		}
	}
	if rows == 0 || a.quiet && !dry {
		return nil
	}
	return a.table(func(w *tabwriter.Writer) {
		writer := func(s string) string {
			if !several {
				return ""
			}
			return s + "\t"
		}
		fmt.Fprintf(w, "\tID\tNAME\tTIME\t%sTAGS\tWHY\n", writer("WRITER"))
		for _, d := range ds {
			what := "goes"
			if d.Keep {
				what = "stays"
			}
			if s := d.Snapshot; !d.Keep || dry {
				name := s.Name
				if s.ModeName() != snapshotter.Full {
					name += " (" + s.Mode + ")"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s%s\t%s\n", what, s.ID.String()[:8], name, s.Dir, writer(s.Writer[:min(8, len(s.Writer))]), strings.Join(s.Tags, ","), strings.Join(d.Reasons, "; "))
			}
		}
	})
}

// carryOut forgets what is to go. Pruned tells that a prune comes next.
func (a *app) carryOut(ctx context.Context, r *repo.Repo, ds []repo.Decision, dry, pruned bool) error {
	var ids []repo.ID
	doubted := 0
	for _, d := range ds {
		if !d.Keep {
			ids = append(ids, d.Snapshot.ID)
		}
		if d.Doubted {
			doubted++
		}
	}
	var res repo.ForgetResult
	var err error
	gone := len(ids)
	if !dry && len(ids) > 0 {
		res, err = r.Forget(ctx, ids)
		gone = len(res.Removed) + len(res.Hidden)
	}
	stay := ""
	if n := len(ds) - gone; n > 0 { // of those that were named none does, and others do
		stay = fmt.Sprintf(", %d stay", n)
	}
	switch {
	case len(ds) == 0:
		a.sayf("no snapshots fit: nothing to forget")
	case dry:
		a.sayf("would forget %d of %d snapshots%s", gone, len(ds), stay)
	default:
		a.sayf("forgot %d of %d snapshots%s", gone, len(ds), stay)
	}
	if gone > 0 && !dry && !pruned {
		a.sayf("  `cutbank prune` frees what only they needed")
	}
	if doubted > 0 && !dry {
		a.sayf("the dates of %d of them are not believed, and no rule counts those: see --dry-run", doubted)
	}
	if n := len(res.Hidden); n > 0 {
		a.sayf("%d are hidden, as their writers may be at work yet, a request under way, or they are locked: a later prune removes them", n)
	}
	return errors.Join(a.emit("forget", object{"dry_run": dry, "snapshots": len(ds), "kept": len(ds) - gone, "forgotten": gone, "hidden": len(res.Hidden), "doubted": doubted}), err)
}
