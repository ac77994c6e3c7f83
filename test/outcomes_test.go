package test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/local"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

var updateOutcomes = flag.Bool("update-outcomes", false, "write testdata/outcomes.golden anew")

// outcomeHead explains the golden table.
const outcomeHead = `# What becomes of every kind of damage, on a repository with an object of every kind.
#
# open       opening the repository: ok, or why not
# verify     what verify says: clean; named: the damaged object or a path that needs it; healed: nothing of it is lost;
#            known: only what the stand-in's own record says is lost
# read-data  the same with --read-data
# repair     what repair does: drops the object, lists packs again, removes a segment, salvages chunks, makes a snapshot that stands in
# after      what verify --read-data says after that
# pruned     and after the damaged snapshots that have a stand-in are forgotten, and prune has run
# files      of the newest snapshot, or of what stands in for it: whole, part, none; gone: no such snapshot
`

// TestOutcomes damages each kind of object in each way, and compares what is
// noticed, and what repair brings back, with a golden table.
func TestOutcomes(t *testing.T) {
	o := newOutcomes(t)
	var b bytes.Buffer
	b.WriteString(outcomeHead)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "object\tdamage\topen\tverify\tread-data\trepair\tafter\tpruned\tfiles")
	for _, c := range o.cases(t) {
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.object, c.how, strings.Join(o.try(t, c), "\t"))
	}
	with := o.withParity(t)
	for _, c := range with.parityCases(t) {
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.object, c.how, strings.Join(with.try(t, c), "\t"))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/outcomes.golden"
	if *updateOutcomes {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	got, lines := strings.Split(b.String(), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(got), len(lines)) {
		g, l := "", ""
		if i < len(got) {
			g = got[i]
		}
		if i < len(lines) {
			l = lines[i]
		}
		if g != l {
			t.Errorf("line %d of %s:\n got %s\nwant %s", i+1, golden, g, l)
		}
	}
	if t.Failed() {
		t.Log("-update-outcomes writes the table anew")
	}
}

// outcomes is a repository to damage copies of.
type outcomes struct {
	all    map[string][]byte
	second repo.ID // the newest snapshot
	packs  map[string]string
	gone   map[string]map[string][]byte // objects that were removed by right, by kind
}

// smallFiles are as many as make several frames of pages.
const smallFiles = 300

// outcome is one damage: objects with other bytes, or none.
type outcome struct {
	object, how string
	data        map[string][]byte
}

func newOutcomes(t *testing.T) *outcomes {
	t.Helper()
	dir := t.TempDir()
	rng := seeded(33)
	write := func(name string, n int) {
		t.Helper()
		p := make([]byte, n)
		if _, err := io.ReadFull(rng, p); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b := newMem()
	r := initRepo(t, b, tiny(t, random))
	o := &outcomes{packs: map[string]string{}, gone: map[string]map[string][]byte{}}
	write("one", 20_000)
	first := snapshot(t, r, live(t, dir), nil)
	write("two", 30_000)
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range smallFiles {
		write(fmt.Sprintf("sub/%03d", i), 40)
	}
	o.second = snapshot(t, r, live(t, dir), nil).ID
	o.replay(t, r, b, dir, write)
	everyKind(t, r, random, time.Unix(1.7e9, 0).UTC())
	o.all = objects(t, b)
	for name, p := range o.all {
		if n, ok := pack.ParseObject(name); ok {
			h, _, err := pack.ParseHeader(p)
			if err != nil {
				t.Fatal(err)
			}
			when := "old"
			if repo.ID(h.Session) == o.second {
				when = "new"
			} else if repo.ID(h.Session) != first.ID {
				t.Fatalf("pack %s is of session %x, of neither snapshot", n, h.Session)
			}
			o.packs[when+" "+h.Kind.String()] = name
		}
	}
	return o
}

// replay makes a snapshot, forgets and prunes it, and keeps what that removed.
func (o *outcomes) replay(t *testing.T, r *repo.Repo, b backend.Backend, dir string, write func(string, int)) {
	t.Helper()
	write("three", 30_000)
	s := snapshot(t, r, live(t, dir), nil)
	if err := os.Remove(filepath.Join(dir, "three")); err != nil {
		t.Fatal(err)
	}
	before := objects(t, b)
	if _, err := r.Forget(t.Context(), []repo.ID{s.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prune(t.Context(), repo.PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	after := objects(t, b)
	for name, p := range before {
		if _, there := after[name]; there {
			continue
		}
		kind, _, _ := strings.Cut(name, "/")
		if o.gone[kind] == nil {
			o.gone[kind] = map[string][]byte{}
		}
		o.gone[kind][name] = p
	}
	if len(o.gone["packs"]) == 0 || len(o.gone["snapshots"]) != 1 {
		t.Fatalf("prune removed %d packs, forget %d records", len(o.gone["packs"]), len(o.gone["snapshots"]))
	}
}

// pick returns an object of a kind, and another of the same kind, if there is
// one.
func (o *outcomes) pick(t *testing.T, kind string) (name, other string) {
	t.Helper()
	switch kind {
	case "snapshots":
		name = "snapshots/" + o.second.String()
	case "data pack":
		return o.packs["new data"], o.packs["old data"]
	case "meta pack":
		return o.packs["new meta"], o.packs["old meta"]
	}
	var names []string
	for n := range o.all {
		// Heartbeats, tombstones and parts are of their kinds, but of less weight.
		if strings.HasPrefix(n, kind+"/") && !strings.Contains(n, ".") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	if name == "" && len(names) > 0 {
		name = names[len(names)-1]
	}
	for _, n := range names {
		if n != name && seal.Kind(o.all[n][7]) == seal.Kind(o.all[name][7]) {
			other = n
		}
	}
	return name, other
}

func (o *outcomes) cases(t *testing.T) []outcome {
	t.Helper()
	var cs []outcome
	for _, kind := range []string{"config", "keys", "writers", "index", "intents", "snapshots", "marks", "condemned", "forgotten", "ledger", "data pack", "meta pack"} {
		name, other := o.pick(t, kind)
		if name == "" {
			t.Fatalf("there is no object of kind %s", kind)
		}
		p := o.all[name]
		add := func(how string, q []byte) {
			cs = append(cs, outcome{kind, how, map[string][]byte{name: q}})
		}
		if strings.HasSuffix(kind, "pack") {
			tr := o.trailer(t, name)
			if len(tr.Frames) < 4 {
				t.Fatalf("%s has only %d frames", name, len(tr.Frames))
			}
			f := tr.Frames[1]
			end := tr.Frames[len(tr.Frames)-1]
			trailer := int(end.Off + end.Stored)
			add("header", flipped(p, 60, 1))
			add("frame's length", flipped(p, int(f.Off)-2, 1))
			add("frame", flipped(p, int(f.Off)+9, 1))
			add("trailer", flipped(p, trailer+20, 1))
			add("closing hash", flipped(p, len(p)-1, 1))
			add("trailer, and frame", flipped(flipped(p, trailer+20, 1), int(f.Off)+9, 1))
		} else {
			add("bit flip", flipped(p, len(p)/2, 1))
		}
		add("cut short", p[:len(p)/2])
		add("deleted", nil)
		if other != "" {
			add("exchanged", o.all[other])
		}
	}
	segments := map[string][]byte{}
	for name := range o.all {
		if strings.HasPrefix(name, "index/") {
			segments[name] = nil
		}
	}
	cs = append(cs, outcome{"index", "all deleted", segments})
	noTrailer := map[string][]byte{}
	for name := range segments {
		noTrailer[name] = nil
	}
	name := o.packs["new meta"]
	tr := o.trailer(t, name)
	end := tr.Frames[len(tr.Frames)-1]
	noTrailer[name] = flipped(o.all[name], int(end.Off+end.Stored)+20, 1)
	cs = append(cs, outcome{"index, meta pack", "all deleted, trailer", noTrailer})
	both := map[string][]byte{}
	for _, kind := range []string{"snapshots", "packs"} {
		cs = append(cs, outcome{kind, "old ones replayed", o.gone[kind]})
		maps.Copy(both, o.gone[kind])
	}
	return append(cs, outcome{"snapshots, packs", "old ones replayed", both})
}

// withParity returns the same repository with parity for every pack.
func (o *outcomes) withParity(t *testing.T) *outcomes {
	t.Helper()
	b := o.backend(t, nil)
	r := open(t, b)
	if res, err := r.AddParity(t.Context(), repo.ParityOptions{Percent: 20}); err != nil || res.Packs == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	with := *o
	with.all = objects(t, b)
	return &with
}

func (o *outcomes) parityCases(t *testing.T) []outcome {
	t.Helper()
	name := o.packs["new data"]
	n, _ := pack.ParseObject(name)
	p, par := o.all[name], o.all[parity.Object(n)]
	f := o.trailer(t, name).Frames[1]
	one := func(object, how, name string, q []byte) outcome {
		return outcome{object, how, map[string][]byte{name: q}}
	}
	const with = "pack with parity"
	return []outcome{
		one(with, "frame", name, flipped(p, int(f.Off)+9, 1)),
		one(with, "closing hash", name, flipped(p, len(p)-1, 1)),
		one(with, "a tenth cut off", name, p[:len(p)*9/10]),
		one(with, "cut short", name, p[:len(p)/2]),
		one(with, "deleted", name, nil),
		{with, "frame, and its parity", map[string][]byte{name: flipped(p, int(f.Off)+9, 1), parity.Object(n): flipped(par, len(par)/2, 1)}},
		{with, "frame, parity deleted", map[string][]byte{name: flipped(p, int(f.Off)+9, 1), parity.Object(n): nil}},
		one("parity", "bit flip", parity.Object(n), flipped(par, len(par)/2, 1)),
		one("parity", "cut short", parity.Object(n), par[:len(par)/2]),
		one("parity", "deleted", parity.Object(n), nil),
	}
}

func (o *outcomes) trailer(t *testing.T, name string) *pack.Trailer {
	t.Helper()
	n, _ := pack.ParseObject(name)
	p := o.all[name]
	mem := o.backend(t, nil)
	tr, err := pack.ReadTrailer(open(t, mem).SecretKeys(), n, int64(len(p)), func(off, n int64) ([]byte, error) { return p[off : off+n], nil })
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// backend returns a folder with the repository in it, damaged.
func (o *outcomes) backend(t *testing.T, damage map[string][]byte) backend.Backend {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "repo")
	if err != nil {
		t.Fatal(err)
	}
	b, err := local.Create(filepath.Join(dir, "r"))
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range o.all {
		if q, hit := damage[name]; hit {
			p = q
			if q == nil {
				continue
			}
		}
		if err := b.Put(t.Context(), name, p); err != nil {
			t.Fatal(err)
		}
	}
	for name, p := range damage {
		if _, was := o.all[name]; !was {
			if err := b.Put(t.Context(), name, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	return b
}

// try returns the columns of a damage.
func (o *outcomes) try(t *testing.T, c outcome) []string {
	t.Helper()
	b := o.backend(t, c.data)
	opt := options(t)
	opt.Logf = nil
	r, err := repo.Open(t.Context(), b, opt)
	if err != nil {
		return []string{classOf(err), "-", "-", "-", "-", "-", "-"}
	}
	cols := []string{"ok", o.verify(t, r, false), o.verify(t, r, true)}
	r.Close()
	if r, err = repo.Open(t.Context(), b, opt); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cols = append(cols, o.repair(t, r), o.verify(t, r, true), o.prune(t, r))
	return append(cols, o.files(t, r))
}

// classOf is an error as exit codes tell it.
func classOf(err error) string {
	for class, e := range map[string]error{"damaged": chunk.ErrCorrupt, "missing": chunk.ErrMissing, "wrong key": repo.ErrKey, "no repository": repo.ErrNoRepo, "newer": repo.ErrFormat} {
		if errors.Is(err, e) {
			return class
		}
	}
	return "error"
}

func (o *outcomes) verify(t *testing.T, r *repo.Repo, data bool) string {
	t.Helper()
	said := "clean"
	res, err := r.Check(t.Context(), repo.CheckOptions{ReadData: data, Heal: data}, func(d repo.Damage) {
		switch {
		case !d.Known && !d.Healed:
			said = "named"
		case said == "clean" && d.Known:
			said = "known"
		case said == "clean":
			said = "healed"
		}
		if d.Object == "" && d.Path == "" {
			t.Errorf("damage without a name: %v", d.Err)
		}
	})
	if err != nil {
		return classOf(err)
	}
	if said == "clean" && len(res.Unknown) > 0 {
		return "unknown"
	}
	return said
}

func (o *outcomes) repair(t *testing.T, r *repo.Repo) string {
	t.Helper()
	// A dry run must say the same and change nothing.
	before := objects(t, r.Backend())
	var dry, did []string
	collect := func(steps *[]string) func(repo.RepairStep) {
		return func(st repo.RepairStep) {
			what := map[string]string{repo.RepairDropped: "drops it", repo.RepairListed: "lists", repo.RepairRemoved: "removes segment", repo.RepairSalvaged: "salvages",
				repo.RepairSnapshot: "stands in", repo.RepairHopeless: "gives up", repo.RepairHealed: "heals"}[st.Do]
			if what != "" && !slices.Contains(*steps, what) {
				*steps = append(*steps, what)
			}
		}
	}
	opt := repo.RepairOptions{Notes: true, Index: true, Packs: true, Snapshots: true, ReadData: true, DryRun: true}
	dryRes, err := r.Repair(t.Context(), opt, collect(&dry))
	if err != nil {
		return classOf(err)
	}
	for name, p := range objects(t, r.Backend()) {
		if !bytes.Equal(before[name], p) {
			t.Errorf("a dry run changed %s", name)
		}
	}
	opt.DryRun = false
	res, err := r.Repair(t.Context(), opt, collect(&did))
	if err != nil {
		return classOf(err)
	}
	if !slices.Equal(dry, did) || res != dryRes {
		t.Errorf("the dry run said %q %+v, the repair did %q %+v", dry, dryRes, did, res)
	}
	if len(did) == 0 {
		return "nothing"
	}
	return strings.Join(did, ", ")
}

// prune forgets what was repaired, removes what nobody needs any more, and
// verifies again.
func (o *outcomes) prune(t *testing.T, r *repo.Repo) string {
	t.Helper()
	var old []repo.ID
	snaps, _ := r.Snapshots(t.Context())
	for _, s := range snaps {
		if s.Repairs != nil {
			old = append(old, *s.Repairs)
		}
	}
	if _, err := r.Forget(t.Context(), old); err != nil {
		return "forget: " + classOf(err)
	}
	if _, err := r.Prune(t.Context(), repo.PruneOptions{MaxRepack: -1}); err != nil {
		return "prune: " + classOf(err)
	}
	return o.verify(t, r, true)
}

// files tells how much of the newest snapshot can be read.
func (o *outcomes) files(t *testing.T, r *repo.Repo) string {
	t.Helper()
	snaps, _ := r.Snapshots(t.Context())
	var s *repo.Snapshot
	for _, x := range snaps {
		if x.ID == o.second && s == nil || x.Repairs != nil && *x.Repairs == o.second {
			s = x
		}
	}
	if s == nil {
		return "gone"
	}
	good, bad := 0, 0
	root, err := snapfs.NewCache(r.Store()).Open(t.Context(), s.Tree.ID)
	if err != nil {
		return "none"
	}
	countFiles(t.Context(), root, &good, &bad)
	switch {
	case bad == 0 && good == smallFiles+2:
		return "whole"
	case good == 0:
		return "none"
	}
	return "part"
}

// countFiles reads all files below a directory.
func countFiles(ctx context.Context, dir tree.Node, good, bad *int) {
	for n, err := range dir.Entries(ctx, 0) {
		switch {
		case err != nil:
			*bad++
		case n.Attr().Kind == tree.Dir:
			countFiles(ctx, n, good, bad)
		default:
			if _, err := n.ReadAt(ctx, make([]byte, n.Attr().Size), 0); err != nil && err != io.EOF {
				*bad++
			} else {
				*good++
			}
		}
	}
}
