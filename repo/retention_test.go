package repo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// at is a time of March 2026, whose first day is a Sunday.
func at(day, hour, minute int) time.Time {
	return time.Date(2026, 3, day, hour, minute, 0, 0, time.UTC)
}

// snapAt is a snapshot that was stored when it was made.
func snapAt(label string, t time.Time) *Snapshot {
	return &Snapshot{ID: ID{15: byte(len(label)), 0: label[0], 1: label[len(label)-1]}, Name: "web", Label: label, Time: t, ModTime: t}
}

// kept returns the labels of what stays.
func kept(ds []Decision) string {
	var labels []string
	for _, d := range ds {
		if d.Keep {
			labels = append(labels, d.Snapshot.Label)
		}
	}
	return strings.Join(labels, " ")
}

func TestDecide(t *testing.T) {
	// Hours of two days, days of two weeks, and what is older.
	var series []*Snapshot
	for _, s := range []struct {
		label string
		t     time.Time
	}{
		{"y25", time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)}, {"dec", time.Date(2025, 12, 31, 23, 59, 59, 0, time.UTC)},
		{"jan", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}, {"sun", at(1, 23, 59)}, {"mon", at(2, 0, 0)}, {"tue", at(3, 4, 0)},
		{"a", at(10, 1, 0)}, {"b", at(10, 7, 59)}, {"c", at(10, 8, 0)}, {"d", at(10, 8, 30)}, {"e", at(12, 9, 0)},
	} {
		series = append(series, snapAt(s.label, s.t))
	}
	all := kept(Decide(series, Policy{Last: All}, at(20, 0, 0)))
	for _, tt := range []struct {
		what string
		p    Policy
		want string
	}{
		{"no rule", Policy{}, all},
		{"no rule that counts", Policy{Last: -5, Buckets: []Bucket{{Count: 0, Width: time.Hour}}}, all},
		{"last", Policy{Last: 3}, "c d e"},
		{"last, of more than there are", Policy{Last: 30}, all},
		{"hourly", Policy{Hourly: 3}, "b d e"},
		{"daily: days without snapshots do not count", Policy{Daily: 3}, "tue d e"},
		{"weekly begins on Monday", Policy{Weekly: 3}, "sun tue e"},
		{"monthly", Policy{Monthly: 3}, "dec jan e"},
		{"yearly", Policy{Yearly: 5}, "dec e"},
		{"within, the end included", Policy{Within: at(12, 9, 0).Sub(at(10, 8, 0))}, "c d e"},
		{"rules add up", Policy{Last: 1, Daily: 2, Yearly: All}, "dec d e"},
		{"an hour's width is an hour", Policy{Buckets: []Bucket{{Count: 3, Width: time.Hour}}}, "b d e"},
		{"a day's width is a day", Policy{Buckets: []Bucket{{Count: 3, Width: 24 * time.Hour}}}, "tue d e"},
		{"a week's width is a week", Policy{Buckets: []Bucket{{Count: 3, Width: 7 * 24 * time.Hour}}}, "sun tue e"},
		{"four hours", Policy{Buckets: []Bucket{{Count: 3, Width: 4 * time.Hour}}}, "b d e"},
		{"an hour, as far back as two days", Policy{Buckets: []Bucket{{Within: 50 * time.Hour, Width: time.Hour}}}, "b d e"},
		{"tags do not count as rules", Policy{KeepTags: []string{"none"}}, ""},
	} {
		ds := Decide(series, tt.p, at(20, 0, 0))
		if got := kept(ds); got != tt.want {
			t.Errorf("%s: %q stay, want %q", tt.what, got, tt.want)
		}
		for i, d := range ds {
			if d.Snapshot != series[i] || len(d.Reasons) == 0 {
				t.Errorf("%s: decision %d is of %s, because of %q", tt.what, i, d.Snapshot.Label, d.Reasons)
			}
		}
	}
}

// TestDecideMarks: what was said of a snapshot counts, and how it takes part in
// the rules.
func TestDecideMarks(t *testing.T) {
	now := at(20, 0, 0)
	for _, tt := range []struct {
		what   string
		change func(old, mid, last *Snapshot)
		p      Policy
		want   string
		reason string // of the one named old
	}{
		{"pinned", func(old, _, _ *Snapshot) { old.Pinned = true }, Policy{Last: 1}, "old last", "pinned"},
		{"pinned takes a slot", func(_, _, last *Snapshot) { last.Pinned = true }, Policy{Last: 1}, "last", "no rule keeps it"},
		{"tag", func(old, _, _ *Snapshot) { old.Tags = []string{"x", "gold"} }, Policy{Last: 1, KeepTags: []string{"gold"}}, "old last", "tag gold"},
		{"expired, without a rule", func(old, _, _ *Snapshot) { old.Expires = now }, Policy{}, "mid last", "expired 2026-03-20T00.00.00Z"},
		{"expired goes whatever the rules say", func(old, _, last *Snapshot) { old.Expires = at(2, 0, 0); last.Expires = at(2, 0, 0) },
			Policy{Last: 1, Within: 1000 * time.Hour, KeepTags: []string{"x"}}, "mid", "expired 2026-03-02T00.00.00Z"},
		{"expired and pinned", func(old, _, _ *Snapshot) { old.Expires = at(2, 0, 0); old.Pinned = true }, Policy{Last: 1}, "old last", "pinned"},
		{"expires later", func(old, _, _ *Snapshot) { old.Expires = at(21, 0, 0) }, Policy{Last: 1}, "old last", "until 2026-03-21T00.00.00Z"},
		{"expires later, takes no slot", func(_, _, last *Snapshot) { last.Expires = at(21, 0, 0) }, Policy{Last: 1}, "mid last", "no rule keeps it"},
		{"a mark cannot be read", func(old, _, _ *Snapshot) { old.MarkErr = errors.New("rot") }, Policy{Last: 1}, "old last", "a mark of it cannot be read, and may have pinned it"},
		{"future", func(_, _, last *Snapshot) { last.Time = at(21, 0, 0); last.ModTime = time.Time{} }, Policy{Last: 1}, "mid last", "no rule keeps it"},
		{"future within the slack", func(_, _, last *Snapshot) { last.Time = now.Add(clockSlack); last.ModTime = time.Time{} }, Policy{Last: 1}, "last", "no rule keeps it"},
		{"future by its own word only", func(_, _, last *Snapshot) { last.Time = at(21, 0, 0) }, Policy{Last: 1}, "last", "no rule keeps it"},
		{"late, of the owner", func(old, _, _ *Snapshot) { old.ModTime = at(15, 0, 0) }, Policy{Last: 1}, "last", "no rule keeps it"},
		{"late, of another", func(old, _, last *Snapshot) { old.Writer = "node"; old.ModTime = at(15, 0, 0) }, Policy{Last: 1}, "old last", "dated 9d before it was stored"},
		{"late, and all are trusted", func(old, mid, last *Snapshot) {
			old.Writer, mid.Writer, last.Writer = "node", "node", "node"
			old.ModTime = at(15, 0, 0)
		}, Policy{Last: 1, TrustDates: true}, "last", "no rule keeps it"},
		{"the backend tells no time", func(old, mid, last *Snapshot) {
			for _, s := range []*Snapshot{old, mid, last} {
				s.Writer, s.ModTime = "node", time.Unix(0, 0)
			}
		}, Policy{Last: 1}, "last", "no rule keeps it"},
		{"partial beside the last complete one", func(_, mid, last *Snapshot) { last.Unread, mid.Unread = 1, 1 }, Policy{Last: 1}, "old last", "last, complete"},
		{"a member failed", func(_, mid, last *Snapshot) {
			last.Members = []Member{{State: "complete"}, {State: "failed"}}
			mid.Members = []Member{{State: "complete"}}
		}, Policy{Daily: 1}, "mid last", "no rule keeps it"},
		{"all partial", func(old, mid, last *Snapshot) { old.Unread, mid.Unread, last.Unread = 1, 1, 1 }, Policy{Last: 2}, "mid last", "no rule keeps it"},
		{"a dataless one", func(_, _, last *Snapshot) { last.Mode = "dataless" }, Policy{Last: 1}, "mid last", "no rule keeps it"},
		{"light ones beside a full one that says so", func(old, mid, last *Snapshot) { old.Mode, mid.Mode, last.Mode = "full", "light", "light" }, Policy{Daily: 1}, "old last", "daily 2026-03-06"},
		{"another name", func(old, _, _ *Snapshot) { old.Name = "db" }, Policy{Last: 1}, "old last", "last"},
		{"another writer", func(old, _, _ *Snapshot) { old.Writer = "node" }, Policy{Last: 1}, "old last", "last"},
	} {
		old, mid, last := snapAt("old", at(6, 0, 0)), snapAt("mid", at(7, 0, 0)), snapAt("last", at(7, 1, 0))
		tt.change(old, mid, last)
		ds := Decide([]*Snapshot{old, mid, last}, tt.p, now)
		if got := kept(ds); got != tt.want || ds[0].Reasons[0] != tt.reason {
			t.Errorf("%s: %q stay, want %q; old because of %q, want %q", tt.what, got, tt.want, ds[0].Reasons, tt.reason)
		}
		for _, d := range ds {
			if d.Keep && d.Expired {
				t.Errorf("%s: %s stays, and has expired", tt.what, d.Snapshot.Label)
			}
		}
	}
}

func TestEmptied(t *testing.T) {
	now := at(20, 0, 0)
	a, b, c := snapAt("a", at(6, 0, 0)), snapAt("b", at(7, 0, 0)), snapAt("c", at(8, 0, 0))
	c.Name = "db"
	all := []*Snapshot{a, b, c}
	p := Policy{KeepTags: []string{"gold"}}
	for _, tt := range []struct {
		what   string
		change func()
		judged []*Snapshot
		want   []Group
	}{
		{"all go", func() {}, all, []Group{{"web", ""}, {"db", ""}}},
		{"one stays", func() { a.Tags = []string{"gold"} }, all, []Group{{"db", ""}}},
		{"one is not judged", func() {}, all[:1], nil},
		{"all have expired", func() { c.Expires = at(9, 0, 0) }, all[2:], nil},
		{"what stays expires later", func() { a.Expires = at(25, 0, 0) }, all[:2], []Group{{"web", ""}}},
		{"what stays is dated in the future", func() { a.Time, a.ModTime = at(25, 0, 0), at(25, 0, 0) }, all[:2], []Group{{"web", ""}}},
	} {
		was := [3]Snapshot{*a, *b, *c}
		tt.change()
		if got := Emptied(all, Decide(tt.judged, p, now)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, got, tt.want)
		}
		*a, *b, *c = was[0], was[1], was[2]
	}
}

// TestFlood: who writes thousands of snapshots, dated as he likes, pushes out
// nobody else's, and of his own none that is older than a day by more than time
// itself does.
func TestFlood(t *testing.T) {
	now := at(20, 12, 0)
	p := Policy{Hourly: 48, Daily: 14, Weekly: 2, Owner: "owner", Buckets: []Bucket{{Count: 7, Width: 24 * time.Hour}}}
	var snaps []*Snapshot
	add := func(writer string, dated, stored time.Time) {
		s := &Snapshot{Name: "web", Writer: writer, Time: dated, ModTime: stored}
		binary.BigEndian.PutUint32(s.ID[:], uint32(len(snaps)))
		snaps = append(snaps, s)
	}
	for day := 1; day <= 19; day += 2 {
		add("node", at(day, 3, 0), at(day, 3, 10))
		add("owner", at(day, 4, 0), at(day, 4, 10))
	}
	honest := len(snaps)
	before := Decide(snaps, p, now)
	for i := range 2000 {
		add("node", at(1, 0, 0).Add(time.Duration(i)*15*time.Minute), now)      // past
		add("node", now.Add(time.Duration(i)*15*time.Minute+clockSlack+1), now) // future
		add("node", now.Add(time.Duration(i)*time.Hour), time.Time{})
	}
	after := Decide(snaps, p, now)
	for i := range honest {
		s := snaps[i]
		// What is dated by less than a day before it was stored is believed.
		if before[i].Keep && !after[i].Keep && (s.Writer != "node" || now.Sub(s.Time) > 14*24*time.Hour) {
			t.Errorf("%s's of %s was pushed out", s.Writer, s.Time)
		}
	}
}

// better reports whether a comes before b, newest first.
func better(a, b *Snapshot) bool {
	if !a.When().Equal(b.When()) {
		return a.When().After(b.When())
	}
	return a.ID.String() > b.ID.String()
}

// oracle says of one snapshot, by the words of the doc alone, whether the rules
// keep it among these.
func oracle(s *Snapshot, snaps []*Snapshot, p Policy) bool {
	hours := func(t time.Time, h int64) string {
		return fmt.Sprint((t.Unix() - time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).Unix()) / (h * 3600))
	}
	type counter struct {
		n      int
		within time.Duration
		of     func(time.Time) string
	}
	rules := []counter{
		{p.Hourly, 0, func(t time.Time) string { return hours(t, 1) }},
		{p.Daily, 0, func(t time.Time) string { return hours(t, 24) }},
		{p.Weekly, 0, func(t time.Time) string { return hours(t, 7*24) }},
		{p.Monthly, 0, func(t time.Time) string { return fmt.Sprint(t.UTC().Year(), t.UTC().Month()) }},
		{p.Yearly, 0, func(t time.Time) string { return fmt.Sprint(t.UTC().Year()) }},
	}
	for _, b := range p.Buckets {
		rules = append(rules, counter{b.Count, b.Within, func(t time.Time) string { return hours(t, int64(b.Width/time.Hour)) }})
	}
	for _, completeOnly := range []bool{false, true} {
		if completeOnly && s.Unread > 0 {
			continue
		}
		var newer []*Snapshot
		newest := s
		for _, o := range snaps {
			if o.Name == s.Name && o.Writer == s.Writer && !(completeOnly && o.Unread > 0) && better(o, s) {
				newer = append(newer, o)
				if better(o, newest) {
					newest = o
				}
			}
		}
		if len(newer) < p.Last || p.Within > 0 && newest.When().Sub(s.When()) <= p.Within {
			return true
		}
		for _, r := range rules {
			later, shadowed := map[string]bool{}, false
			for _, o := range newer {
				later[r.of(o.When())] = true
				shadowed = shadowed || r.of(o.When()) == r.of(s.When())
			}
			if !shadowed && (r.within > 0 && newest.When().Sub(s.When()) <= r.within || r.within == 0 && (r.n == All || len(later) < r.n)) {
				return true
			}
		}
	}
	return false
}

// randomSeries makes snapshots of some names and writers, in the order in which
// they are stored: most by the clock, some partial, some dated back.
func randomSeries(rng *rand.Rand, n int) []*Snapshot {
	t := time.Date(2025, 11, 20, 0, 0, 0, 0, time.UTC)
	var snaps []*Snapshot
	for i := range n {
		t = t.Add(time.Duration(rng.ExpFloat64() * float64([]time.Duration{10 * time.Minute, 3 * time.Hour, 40 * time.Hour}[rng.IntN(3)]))).Truncate(time.Minute)
		s := &Snapshot{Name: []string{"web", "web", "db"}[rng.IntN(3)], Writer: []string{"owner", "node"}[rng.IntN(2)], Time: t, ModTime: t}
		binary.BigEndian.PutUint64(s.ID[:], rng.Uint64())
		binary.BigEndian.PutUint64(s.ID[8:], uint64(i))
		if rng.IntN(4) == 0 {
			s.Unread = 1
		}
		if rng.IntN(8) == 0 { // a long one, or a copy
			s.Time = t.Add(-time.Duration(rng.Int64N(int64(maxDelay))))
			if s.Writer == "owner" {
				s.Time = t.Add(-time.Duration(rng.Int64N(int64(100 * maxDelay))))
			}
		}
		snaps = append(snaps, s)
	}
	return snaps
}

func randomPolicy(rng *rand.Rand) Policy {
	some := func() int { return max(0, rng.IntN(12)-6) }
	p := Policy{Owner: "owner", Last: some(), Hourly: some(), Daily: some(), Weekly: some(), Monthly: some(), Yearly: some()}
	if rng.IntN(4) == 0 {
		p.Within = time.Duration(rng.IntN(200)) * time.Hour
	}
	for range rng.IntN(3) {
		b := Bucket{Count: rng.IntN(6) - 1, Width: time.Duration(1+rng.IntN(60)) * time.Hour}
		if b.Width = min(b.Width, 48*time.Hour); rng.IntN(3) == 0 {
			b.Within = time.Duration(rng.IntN(300)) * time.Hour
		}
		p.Buckets = append(p.Buckets, b)
	}
	return p
}

// empty reports whether no rule of the policy keeps anything.
func empty(p Policy) bool { return len(p.rules()) == 0 }

// TestDecideOracle compares random series with what the doc says.
func TestDecideOracle(t *testing.T) {
	const seed = 3
	rng := rand.New(rand.NewPCG(seed, 1))
	goes := 0
	for round := range 300 {
		snaps, p := randomSeries(rng, 1+rng.IntN(60)), randomPolicy(rng)
		if empty(p) {
			continue
		}
		rng.Shuffle(len(snaps), func(i, j int) { snaps[i], snaps[j] = snaps[j], snaps[i] })
		for i, d := range Decide(snaps, p, snaps[0].ModTime.AddDate(10, 0, 0)) {
			if want := oracle(snaps[i], snaps, p); d.Keep != want {
				t.Fatalf("seed %d, round %d, %+v: %s of %s stays %v (%q), want %v", seed, round, p, d.Snapshot.Name, d.Snapshot.Time, d.Keep, d.Reasons, want)
			}
			if !d.Keep {
				goes++
			}
		}
	}
	if goes < 1000 {
		t.Errorf("only %d snapshots went: the series are too short to tell", goes)
	}
}

// TestDecideConverges: forget after each snapshot, after some, or once at the
// end leave the same, in whatever order the snapshots come; and the newest of a
// group stays, and the newest complete one.
func TestDecideConverges(t *testing.T) {
	const seed = 5
	rng := rand.New(rand.NewPCG(seed, 1))
	for round := range 300 {
		snaps, p := randomSeries(rng, 1+rng.IntN(60)), randomPolicy(rng)
		if empty(p) {
			continue
		}
		now := snaps[len(snaps)-1].ModTime
		var left []*Snapshot
		often := rng.IntN(4) + 1
		for _, s := range snaps {
			if left = append(left, s); rng.IntN(often) == 0 {
				left = survivors(left, p, s.ModTime)
			}
		}
		once := survivors(snaps, p, now)
		if left = survivors(left, p, now); !slices.Equal(left, once) {
			t.Fatalf("seed %d, round %d, %+v: step by step %d stay, at once %d", seed, round, p, len(left), len(once))
		}
		newest, complete := map[Group]*Snapshot{}, map[Group]*Snapshot{}
		for _, s := range snaps {
			g := groupOf(s)
			if o := newest[g]; o == nil || better(s, o) {
				newest[g] = s
			}
			if o := complete[g]; s.Unread == 0 && (o == nil || better(s, o)) {
				complete[g] = s
			}
		}
		for g, s := range newest {
			if !slices.Contains(once, s) || complete[g] != nil && !slices.Contains(once, complete[g]) {
				t.Fatalf("seed %d, round %d, %+v: the newest of %v, or the newest complete one, went", seed, round, p, g)
			}
		}
	}
}

func survivors(snaps []*Snapshot, p Policy, now time.Time) []*Snapshot {
	var left []*Snapshot
	for _, d := range Decide(snaps, p, now) {
		if d.Keep {
			left = append(left, d.Snapshot)
		}
	}
	return left
}

// TestConvergesToSeries has a snapshot every twenty minutes for six weeks and
// forget after each: what is left at any time is what the policy promises.
func TestConvergesToSeries(t *testing.T) {
	p := Policy{Buckets: []Bucket{{Count: 3, Width: time.Hour}, {Count: 4, Width: 4 * time.Hour}, {Count: 4, Width: 24 * time.Hour}, {Count: 2, Width: 7 * 24 * time.Hour}}}
	var left []*Snapshot
	begin := at(1, 0, 0)
	for i := range 3 * 24 * 42 {
		s := &Snapshot{Name: "web", Time: begin.Add(time.Duration(i) * 20 * time.Minute)}
		binary.BigEndian.PutUint32(s.ID[:], uint32(i))
		left = survivors(append(left, s), p, s.Time)
		if i < 3*24*21 {
			continue
		}
		for _, b := range p.Buckets {
			have := map[time.Time]bool{}
			for _, s := range left {
				have[s.Time.Truncate(b.Width)] = true
			}
			for n := range b.Count {
				if want := s.Time.Truncate(b.Width).Add(-time.Duration(n) * b.Width); !have[want] {
					t.Fatalf("at %s nothing is left of the %s from %s", s.Time, b.Width, want)
				}
			}
		}
		if len(left) > 13 {
			t.Fatalf("at %s %d are left", s.Time, len(left))
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	snaps := randomSeries(rand.New(rand.NewPCG(1, 1)), 10_000)
	p := Policy{Last: 10, Hourly: 24, Daily: 30, Weekly: 10, Monthly: 24, Yearly: All}
	for b.Loop() {
		Decide(snaps, p, start)
	}
}
