package repo

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Policy says which snapshots stay. A snapshot stays if any rule keeps it; the
// zero Policy has no rule, and then all stay but those that have expired.
//
// # Buckets
//
// A rule of N a day keeps the newest snapshot of each of the last N days that
// have any; so do the others with hours, weeks, months, years and Buckets. Days
// without a snapshot do not count, so that a machine that was switched off for a
// month loses nothing by it. All are of the calendar in UTC, weeks those of
// ISO 8601; a Bucket's begin at multiples of its width after Monday, 1 January of
// the year 1, so that one of 24 hours is a day of the calendar and one of seven
// days a week.
//
// That they stand still is what lets a policy be applied as often as one likes.
// The newest of a bucket is settled when the bucket has ended, and it was the
// newest in it ever since it was made; the bucket was among the last N ever
// since as well. So what is kept of all snapshots in the end was kept by every
// run before, whatever came in between, and forget after each snapshot leaves
// what one forget at the end would. Buckets that count back from now would move
// over the snapshots, and pass each of them by in the end. It is the newest that
// is kept, as the oldest of the current day says nothing of what happened since.
//
// # Groups
//
// Each snapshot name is judged by itself, and within it each writer: who may
// write beside others can push out nobody else's. Copies are judged apart for each
// writer of the originals. With one owner on all machines there is one writer.
//
// Full, light and dataless snapshots are judged apart, too: what holds a part of the
// data, or none, takes no full one's place.
//
// A partial snapshot, one with unread paths or members that are not complete,
// never takes a complete one's place. Each rule is applied twice, to all
// snapshots and to the complete ones, and both results stay. So the newest of a
// group stays whatever the rule, and so does the newest complete one; a machine
// whose snapshots are all partial keeps as many as others do.
//
// # What takes no slot
//
// Some snapshots are kept for other reasons, and no rule counts them, so that
// nothing has to go because of them: those that expire some day, as they would
// leave their bucket empty then; and those whose date is not believed. These are
// dated later than now, or, by a writer other than the owner, more than a day
// before they were stored; so are copies of such. Without the latter a stolen node could at once write
// a newer snapshot into each of the last thirty days. As it is, it can push out
// what is older than a day only as fast as time goes by, except where Last
// counts. Pinned snapshots, and those with a tag to keep, take slots as any.
//
// The date of a snapshot is Snapshot.When.
type Policy struct {
	// How many snapshots, or buckets of them, are kept. All is no limit.
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	// Within keeps all that are at most so much older than the newest of the
	// group. It does not count from now: a machine that is gone keeps its last.
	Within   time.Duration
	Buckets  []Bucket
	KeepTags []string // what has one of these tags stays

	// Owner is the writer whose dates are believed also of the past, as copies
	// of old snapshots have them: the owner, as in Snapshot.Writer.
	Owner string
	// TrustDates believes every writer's dates of the past: where the backend's
	// times have been lost, as in a repository that was copied as files.
	TrustDates bool
}

// Bucket keeps the newest snapshot of each of the last Count spans of this
// width; or, if Within is not 0, of each that reaches so far back from the
// newest snapshot of the group. Count is not used then.
type Bucket struct {
	Count  int
	Within time.Duration
	Width  time.Duration
}

// Empty reports whether the policy has no rule: then only what has expired goes.
func (p *Policy) Empty() bool { return len(p.rules()) == 0 && len(p.KeepTags) == 0 }

// All, as a count of a Policy, is no limit.
const All = -1

// maxDelay is how long making a snapshot may take without its date being
// doubted.
const maxDelay = 24 * time.Hour

// Decision says whether a snapshot stays, and why. Reasons are for people.
type Decision struct {
	Snapshot *Snapshot
	Keep     bool
	Reasons  []string
	Expired  bool // goes because its time is up, whatever the rules say
	Doubted  bool // its date is not believed, and it took no slot
}

// Decide applies a policy to snapshots as Snapshots returns them, and returns a
// decision for each, in the same order. It changes nothing. Pinned snapshots
// stay; one whose expiry has passed goes, whatever the rules say; one that will
// expire stays until then, and so does one of which a mark cannot be read.
func Decide(snaps []*Snapshot, p Policy, now time.Time) []Decision {
	rules := p.rules()
	ds := make([]Decision, len(snaps))
	type kind struct {
		Group
		mode string
	}
	counted := map[kind][]*Decision{}
	for i, s := range snaps {
		d := &ds[i]
		d.Snapshot = s
		if d.first(&p, now) {
			k := kind{groupOf(s), s.ModeName()}
			counted[k] = append(counted[k], d)
		}
		if p.Empty() && !d.Expired {
			d.keep("no rule was given")
		}
	}
	for _, all := range counted {
		slices.SortFunc(all, func(a, b *Decision) int {
			return cmp.Or(b.Snapshot.When().Compare(a.Snapshot.When()), strings.Compare(b.Snapshot.ID.String(), a.Snapshot.ID.String()))
		})
		complete := slices.DeleteFunc(slices.Clone(all), func(d *Decision) bool { return d.Snapshot.Partial() })
		for _, r := range rules {
			r.apply(all, "")
			r.apply(complete, ", complete")
		}
	}
	for i := range ds {
		if len(ds[i].Reasons) == 0 {
			ds[i].Reasons = []string{"no rule keeps it"}
		}
	}
	return ds
}

// first notes what is known without looking at the others, and reports whether
// the snapshot takes part in the rules.
func (d *Decision) first(p *Policy, now time.Time) bool {
	s := d.Snapshot
	if s.Pinned {
		d.keep("pinned")
	}
	if s.MarkErr != nil {
		d.keep("a mark of it cannot be read, and may have pinned it")
		return false
	}
	expires := !s.Expires.IsZero()
	if expires && !s.Expires.After(now) && !s.Pinned {
		d.Expired = true
		d.Reasons = append(d.Reasons, "expired "+s.Expires.UTC().Format(TimeLayout))
		return false
	}
	if expires && s.Expires.After(now) {
		d.keep("until " + s.Expires.UTC().Format(TimeLayout))
	}
	for _, tag := range p.KeepTags {
		if slices.Contains(s.Tags, tag) {
			d.keep("tag " + tag)
		}
	}
	switch seen := s.seenBy(p.Owner); {
	case s.When().After(now.Add(clockSlack)):
		d.Doubted = true
		d.keep("dated in the future")
	case !p.TrustDates && seen.Unix() > 0 && seen.Sub(s.When()) > maxDelay:
		d.Doubted = true
		d.keep("dated " + spanText(seen.Sub(s.When()).Truncate(time.Hour)) + " before it was stored")
	}
	return !d.Doubted && !expires
}

// seenBy returns when a storage first saw what a writer whose dates are not
// believed has written; zero if they are. What the owner copied is as old as the
// original's storage says.
func (s *Snapshot) seenBy(owner string) time.Time {
	if s.Writer == owner {
		return s.Seen
	}
	return s.ModTime
}

func (d *Decision) keep(why string) {
	d.Keep = true
	d.Reasons = append(d.Reasons, why)
}

// Partial reports whether the snapshot lacks something of what it was to hold.
func (s *Snapshot) Partial() bool {
	return s.Unread > 0 || slices.ContainsFunc(s.Members, func(m Member) bool { return m.State != "complete" })
}

// ModeName returns what the snapshot has of its source: its Mode, with a name for full
// ones that say nothing.
func (s *Snapshot) ModeName() string { return cmp.Or(s.Mode, "full") }

// Group is what a policy is applied to by itself.
type Group struct{ Name, Writer string }

func groupOf(s *Snapshot) Group {
	if s.author != "" && s.author != s.Writer {
		return Group{s.Name, s.Writer + " for " + s.author}
	}
	return Group{s.Name, s.Writer}
}

// Emptied returns the groups that would have no snapshot left although one of
// them has not expired. What will expire does not count as left, nor does what
// has a date that is not believed. It is told all snapshots that there are, of
// which the decisions may be about some.
func Emptied(all []*Snapshot, ds []Decision) []Group {
	left := map[Group]bool{}
	judged := map[ID]bool{}
	for _, d := range ds {
		judged[d.Snapshot.ID] = true
		if d.Keep && !d.Doubted && (d.Snapshot.Expires.IsZero() || d.Snapshot.Pinned) {
			left[groupOf(d.Snapshot)] = true
		}
	}
	for _, s := range all {
		if !judged[s.ID] {
			left[groupOf(s)] = true
		}
	}
	var empty []Group
	for _, d := range ds {
		if g := groupOf(d.Snapshot); !d.Keep && !d.Expired && !left[g] {
			left[g] = true // named once
			empty = append(empty, g)
		}
	}
	return empty
}

// rule keeps the newest snapshot of each bucket: of so many, or of those that
// begin so near to the newest.
type rule struct {
	what   string
	count  int           // All: no limit
	within time.Duration // 0: no limit
	bucket func(time.Time) string
}

// rules returns what a policy says of counts and times.
func (p *Policy) rules() []rule {
	layout := func(l string) func(time.Time) string { return func(t time.Time) string { return t.Format(l) } }
	rules := []rule{
		{"last", p.Last, 0, nil},
		{"hourly", p.Hourly, 0, layout("2006-01-02T15")},
		{"daily", p.Daily, 0, layout(time.DateOnly)},
		{"weekly", p.Weekly, 0, func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-W%02d", year, week)
		}},
		{"monthly", p.Monthly, 0, layout("2006-01")},
		{"yearly", p.Yearly, 0, layout("2006")},
	}
	if p.Within > 0 {
		rules = append(rules, rule{"within " + spanText(p.Within), All, p.Within, nil})
	}
	for _, b := range p.Buckets {
		r := rule{what: spanText(b.Width), count: b.Count, within: b.Within}
		if b.Within > 0 {
			r.count = All
		}
		// Truncate counts from the zero time, which is that Monday.
		r.bucket = func(t time.Time) string {
			name := t.Truncate(b.Width).Format("2006-01-02T15:04:05.999999999")
			return strings.TrimSuffix(strings.TrimSuffix(name, ":00"), "T00:00")
		}
		rules = append(rules, r)
	}
	return slices.DeleteFunc(rules, func(r rule) bool { return r.count == 0 || r.count < All })
}

// apply notes what the rule keeps of a list that is sorted newest first.
func (r *rule) apply(list []*Decision, suffix string) {
	n, last := 0, ""
	for _, d := range list {
		t := d.Snapshot.When().UTC()
		if r.within > 0 && list[0].Snapshot.When().Sub(t) > r.within {
			return
		}
		why := r.what
		if r.bucket != nil {
			b := r.bucket(t)
			if b == last {
				continue
			}
			why, last = why+" "+b, b
		}
		if n++; r.count != All && n > r.count {
			return
		}
		if !slices.Contains(d.Reasons, why) {
			d.keep(why + suffix)
		}
	}
}

// spanText writes a duration in its largest whole unit.
func spanText(d time.Duration) string {
	for _, u := range []struct {
		d    time.Duration
		name string
	}{{7 * 24 * time.Hour, "w"}, {24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if d >= u.d && d%u.d == 0 {
			return fmt.Sprintf("%d%s", d/u.d, u.name)
		}
	}
	return d.String()
}
