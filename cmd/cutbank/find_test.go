package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

func TestParseSizeRange(t *testing.T) {
	for _, c := range []struct {
		in        string
		low, high int64
		ok        bool
	}{
		{"", 0, 0, true},
		{"10K", 10240, 10240, true},
		{"+1M", 1<<20 + 1, 1<<63 - 1, true},
		{"-10KiB", 0, 10239, true},
		{"0", 0, 0, true},
		{"+", 0, 0, false}, {"+-5", 0, 0, false}, {"5x", 0, 0, false}, {"x", 0, 0, false},
	} {
		r, err := parseSizeRange(c.in)
		if (err == nil) != c.ok || c.ok && (r.low != c.low || r.high != c.high || r.set != (c.in != "")) {
			t.Errorf("%q: %+v, %v", c.in, r, err)
		}
	}
}

func TestParseWhen(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ in, want string }{
		{"2026-11-20", "2026-11-20T00:00:00Z"},
		{"2026-11-20T10:30", "2026-11-20T10:30:00Z"},
		{"2026-11-20 10:30:01", "2026-11-20T10:30:01Z"},
		{"2026-11-20T10:30:01+02:00", "2026-11-20T08:30:01Z"},
		{"2026-11-20T10.30.01Z", "2026-11-20T10:30:01Z"},
		{"3d", "2026-11-18T12:00:00Z"},
		{"1.5d", "2026-11-20T00:00:00Z"},
		{"2w", "2026-11-07T12:00:00Z"},
		{"90m", "2026-11-21T10:30:00Z"},
		{"d", ""}, {"-3d", ""}, {"NaNd", ""}, {"yesterday", ""}, {"2026-13-01", ""}, {"-5h", ""},
	} {
		got, err := parseWhen(c.in, at)
		if c.want == "" {
			if err == nil {
				t.Errorf("%q is taken for %v", c.in, got)
			}
			continue
		}
		if err != nil || got.Time().Format(time.RFC3339) != c.want {
			t.Errorf("%q: %v, %v, want %s", c.in, got, err, c.want)
		}
	}
}

func TestWanted(t *testing.T) {
	at := time.Unix(1e9, 0)
	file := func(size, mtime int64) *tree.Entry {
		return &tree.Entry{Attr: tree.Attr{Name: "notes.txt", Kind: tree.File, Size: size, Mtime: tree.Time{Sec: mtime}}}
	}
	for _, c := range []struct {
		glob  string
		flags findFlags
		e     *tree.Entry
		want  bool
	}{
		{"", findFlags{}, file(1, 1), true},
		{"*.txt", findFlags{}, file(1, 1), true},
		{"*.ods", findFlags{}, file(1, 1), false},
		{"/home/**/*.txt", findFlags{}, file(1, 1), true},
		{"home/u/notes.*", findFlags{}, file(1, 1), true},
		{"/home/*.txt", findFlags{}, file(1, 1), false},
		{"", findFlags{name: "n*"}, file(1, 1), true},
		{"", findFlags{size: "+10"}, file(10, 1), false},
		{"", findFlags{size: "+10"}, file(11, 1), true},
		{"", findFlags{size: "-10"}, file(9, 1), true},
		{"", findFlags{newer: "1h"}, file(1, 1e9-3600), false},
		{"", findFlags{newer: "1h"}, file(1, 1e9-3599), true},
		{"", findFlags{older: "1h"}, file(1, 1e9-3601), true},
		{"", findFlags{types: []string{"d", "f"}}, file(1, 1), true},
		{"", findFlags{types: []string{"d"}}, file(1, 1), false},
		{"", findFlags{size: "0"}, &tree.Entry{Attr: tree.Attr{Name: "d", Kind: tree.Dir}}, false},
	} {
		w, err := c.flags.wanted(c.glob, at)
		if err != nil {
			t.Errorf("%q %+v: %v", c.glob, c.flags, err)
			continue
		}
		if got := w.fits("/home/u", c.e); got != c.want {
			t.Errorf("%q %+v: %v", c.glob, c.flags, got)
		}
	}
	for _, bad := range []struct {
		glob  string
		flags findFlags
	}{
		{"[", findFlags{}}, {"a/{b", findFlags{}}, {"a", findFlags{name: "b"}}, {"", findFlags{name: "a/b"}}, {"", findFlags{types: []string{""}}},
		{"", findFlags{types: []string{"df"}}}, {"", findFlags{types: []string{"x"}}}, {"", findFlags{size: "x"}}, {"", findFlags{newer: "x"}}, {"", findFlags{older: "x"}},
	} {
		if _, err := bad.flags.wanted(bad.glob, at); !errors.Is(err, errUsage) {
			t.Errorf("%q %+v: %v, want an error of usage", bad.glob, bad.flags, err)
		}
	}
	for glob, want := range map[string][]string{"/a/b/*.c": {"a", "b"}, "a/b": {"a"}, "/*/x": nil, `/a\*b/c/*`: {"a*b", "c"}, "/a/**": {"a"}} {
		if w, err := new(findFlags).wanted(glob, at); err != nil || !slices.Equal(w.within, want) {
			t.Errorf("%q is searched within %q, %v; want %q", glob, w.within, err, want)
		}
	}
}

// found runs a finder and returns its hits, one line each.
func (f *forest) found(w *wanted) ([]string, *finder) {
	f.t.Helper()
	var out, errs bytes.Buffer
	snaps := slices.Clone(f.snaps)
	slices.SortStableFunc(snaps, func(a, b *repo.Snapshot) int { return strings.Compare(a.Name, b.Name) })
	fd := &finder{a: &app{stdout: &out, stderr: &errs, json: true}, ctx: context.Background(), get: f.get, w: w, snaps: snaps}
	must(f.t, fd.run())
	var hits []string
	for line := range strings.Lines(out.String()) {
		var m struct {
			Type, Path string
			Size       int64
			Sec        int64 `json:"mtime_sec"`
			Count      int
			Snapshots  []struct {
				Name  string
				First string `json:"first_dir"`
				Last  string `json:"last_dir"`
				Count int
			}
		}
		must(f.t, json.Unmarshal([]byte(line), &m))
		if m.Type == "match" {
			hits = append(hits, fmt.Sprint(m.Path, m.Size, m.Sec, m.Count, m.Snapshots))
		}
	}
	return hits, fd
}

// wantFound says what a search must find, by looking at every file of every
// snapshot.
func (f *forest) wantFound(fits func(p string) bool) map[string]int {
	versions := map[string]int{}
	for _, files := range f.holds {
		for p, l := range files {
			if fits(p) {
				versions[fmt.Sprint("/"+p, l.mtime, l.chunks)]++
			}
		}
	}
	return versions
}

func TestFindersSeeEveryVersionOnce(t *testing.T) {
	for seed := range uint64(5) {
		f := newForest(t)
		f.grow(seed, 9)
		w, err := (&findFlags{types: []string{"f"}}).wanted("f*[05]", time.Now())
		must(t, err)
		hits, fd := f.found(w)
		want := f.wantFound(func(p string) bool { n := path.Base(p); return strings.HasSuffix(n, "0") || strings.HasSuffix(n, "5") })
		if len(hits) != len(want) || fd.versions != len(want) || len(want) < 40 {
			t.Errorf("%d hits, %d versions; want %d", len(hits), fd.versions, len(want))
		}
		if fd.bad.n != 0 {
			t.Errorf("%d failures", fd.bad.n)
		}
		paths := slices.Sorted(maps.Keys(f.holds[4]))
		for i := 0; i < len(paths); i += 20 {
			p, l := paths[i], f.holds[4][paths[i]]
			one, err := (&findFlags{within: "/" + p}).wanted("", time.Now())
			must(t, err)
			got, _ := f.found(one)
			n := 0
			for v, k := range f.wantFound(func(q string) bool { return q == p }) {
				if v == fmt.Sprint("/"+p, l.mtime, l.chunks) {
					n = k
				}
			}
			if !slices.ContainsFunc(got, func(s string) bool {
				return strings.HasPrefix(s, fmt.Sprint("/"+p, len(l.chunks)*leafChunk, l.mtime, n))
			}) {
				t.Fatalf("%s: %q, want one in %d snapshots", p, got, n)
			}
		}
	}
}

func TestFindersReadEqualTreesOnce(t *testing.T) {
	f := newForest(t)
	files := map[string]leaf{}
	for i := range 2000 {
		files[fmt.Sprintf("d%d/f%04d", i%7, i)] = leaf{1, []byte{byte(i)}}
	}
	for range 100 {
		f.add("a", files)
	}
	_, fd := f.found(&wanted{name: "f0001"})
	if fd.versions != 1 {
		t.Errorf("%d versions", fd.versions)
	}
	for id, n := range f.reads {
		if n > 1 {
			t.Errorf("page %s was read %d times", id.Short(), n)
		}
	}
	if len(f.reads) < 20 {
		t.Errorf("%d pages: too few to tell", len(f.reads))
	}
}

func TestFindersGoOnPastDamage(t *testing.T) {
	f := newForest(t)
	files := map[string]leaf{"a": {1, nil}, "z": {1, nil}, "d/x": {7, nil}, "e/x": {1, nil}}
	f.add("a", files)
	files["e/y"] = leaf{2, nil}
	f.add("a", files)
	d := f.dir("d", map[string]leaf{"x": {7, nil}})
	delete(f.pages, d.Root)
	hits, fd := f.found(&wanted{kinds: []tree.Kind{tree.File}})
	if len(hits) != 4 || fd.bad.n != 1 || !errors.Is(fd.bad.err(), chunk.ErrMissing) || exitCode(fd.bad.err()) != 3 {
		t.Errorf("%q, %d failures, %v", hits, fd.bad.n, fd.bad.err())
	}
}

func TestSpans(t *testing.T) {
	var snaps []*repo.Snapshot
	for _, n := range "aaaabb" {
		snaps = append(snaps, &repo.Snapshot{Name: string(n)})
	}
	for _, c := range []struct {
		in   []int
		want []span
	}{
		{nil, nil},
		{[]int{0, 1, 2, 3, 4, 5}, []span{{0, 3, 4}, {4, 5, 2}}},
		{[]int{0, 2, 3, 5}, []span{{0, 0, 1}, {2, 3, 2}, {5, 5, 1}}},
	} {
		set := newSnapSet(len(snaps))
		for _, i := range c.in {
			set.add(i)
		}
		if got := spans(snaps, set); !slices.Equal(got, c.want) || set.count() != len(c.in) {
			t.Errorf("%v: %v", c.in, got)
		}
	}
}
