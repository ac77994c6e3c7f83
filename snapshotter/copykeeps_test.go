package snapshotter

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// crafted commits a snapshot whose root holds what add adds, and whatever else rec
// says.
func crafted(t testing.TB, r *repo.Repo, rec *repo.Snapshot, add func(put tree.Put, data func([]byte) chunk.ID, add func(tree.Entry))) *repo.Snapshot {
	t.Helper()
	s, err := r.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	meta, st := s.Writer.Stream(pack.Meta), s.Writer.Stream(pack.Data)
	put := func(p []byte) (chunk.ID, error) {
		id := r.SecretKeys().Tree.Sum(p)
		_, err := meta.Put(id, p)
		return id, err
	}
	data := func(p []byte) chunk.ID {
		id := r.SecretKeys().Data.Sum(p)
		if _, err := st.Put(id, p); err != nil {
			t.Fatal(err)
		}
		return id
	}
	w := tree.NewDirWriter(put)
	add(put, data, func(e tree.Entry) {
		if e.Nlink == 0 {
			e.Nlink = 1
		}
		if err := w.Add(&e); err != nil {
			t.Fatal(err)
		}
	})
	top := tree.Entry{Attr: tree.Attr{Name: tree.RootName, Kind: tree.Dir, Mode: 0o755, Nlink: 1}}
	if err := w.Finish(&top); err != nil {
		t.Fatal(err)
	}
	rec.Totals = top.Below
	tw := tree.NewDirWriter(put)
	var page tree.Entry
	if err := errors.Join(tw.Add(&top), tw.Finish(&page)); err != nil {
		t.Fatal(err)
	}
	rec.Tree.ID = page.Root
	meta.Flush()
	st.Flush()
	if err := s.Commit(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

// TestCopyKeepsCuts: where a file's source asked for a cut, the copy is cut too,
// and what lies between is cut by itself, whatever an earlier state had there.
func TestCopyKeepsCuts(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	src, dst := otherRepo(t, chunk.Gear, chunk.MinAvg, 1), otherRepo(t, chunk.Rabin, 2<<10, 2)
	like := likeRepo(t, dst, 3)
	type part struct {
		data []byte
		end  tree.End
	}
	var parts []part
	fresh := func() part {
		p := part{random(rng.Uint64(), 1000+rng.IntN(6000)), tree.EndSplitter}
		switch rng.IntN(3) {
		case 0: // zeros at both ends, which make a run with those of neighbours
			clear(p.data[:rng.IntN(len(p.data))/2])
			clear(p.data[len(p.data)-rng.IntN(len(p.data))/2:])
		case 1:
			p.end = tree.EndSource
		}
		return p
	}
	for range 60 {
		parts = append(parts, fresh())
	}
	c := NewCopier(src, dst, CopyOptions{})
	var near, its *repo.Snapshot
	for i := range 40 {
		for range rng.IntN(4) {
			switch at := rng.IntN(len(parts)); rng.IntN(4) {
			case 0:
				parts[at] = fresh()
			case 1:
				parts = slices.Insert(parts, at, fresh())
			default:
				parts[at].end = tree.EndSplitter + tree.EndSource - parts[at].end
			}
		}
		s := crafted(t, src, &repo.Snapshot{Name: "host", Time: epoch}, func(put tree.Put, data func([]byte) chunk.ID, add func(tree.Entry)) {
			f := tree.Entry{Attr: tree.Attr{Name: "f", Kind: tree.File, Mtime: tree.Time{Sec: int64(i)}}}
			rw := tree.NewRecipeWriter(put)
			for _, p := range parts {
				if err := rw.Add(tree.Extent{Len: int64(len(p.data)), Kind: tree.Data, End: p.end, ID: data(p.data)}); err != nil {
					t.Fatal(err)
				}
			}
			if err := rw.Finish(&f); err != nil {
				t.Fatal(err)
			}
			add(f)
		})
		want := mustCopy(t, NewCopier(src, like, CopyOptions{}), CopyJob{Snapshot: s})
		got := mustCopy(t, c, CopyJob{Snapshot: s, Near: near, NearCopy: its})
		if got.Tree != want.Tree {
			t.Fatalf("step %d: the copy differs from one that was made from nothing", i)
		}
		near, its = s, got
	}
}

// TestCopyXattrs: extended attributes in a page of their own are copied when they
// change, and taken over when they do not.
func TestCopyXattrs(t *testing.T) {
	src, dst := otherRepo(t, chunk.Gear, chunk.MinAvg, 1), otherRepo(t, chunk.Rabin, chunk.MinAvg, 2)
	f, d := file("f", []byte("text")), dir("d")
	c := NewCopier(src, dst, CopyOptions{})
	var near, its *repo.Snapshot
	for i := range 4 {
		value := random(uint64(i/2), 2000)
		f.xattrs, d.xattrs = []tree.Xattr{{Name: "user.f", Value: value}}, []tree.Xattr{{Name: "user.d", Value: value[1:]}}
		f.attr.Mtime.Sec++
		s := mustRun(t, src, dir("", f, d), func(o *Options) { o.NoParent = true })
		got := mustCopy(t, c, CopyJob{Snapshot: s, Near: near, NearCopy: its})
		for name, want := range map[string][]byte{"f": value, "d": value[1:]} {
			if x, err := at(t, dst, got, name).Xattrs(t.Context()); err != nil || len(x) != 1 || !bytes.Equal(x[0].Value, want) {
				t.Errorf("step %d: %s has other attributes: %v", i, name, err)
			}
		}
		near, its = s, got
	}
}

// entries returns what a record's root holds.
func entries(t testing.TB, r *repo.Repo, s *repo.Snapshot) []tree.Entry {
	t.Helper()
	get := func(id chunk.ID) ([]byte, error) { return r.Store().Page(t.Context(), id) }
	var list []tree.Entry
	for top, err := range tree.Entries(get, s.Tree.ID) {
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range tree.Entries(get, top.Root) {
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, *e)
		}
	}
	return list
}

// TestCopyKeepsAll: a copy says all that the original says, also what this program
// does not write itself.
func TestCopyKeepsAll(t *testing.T) {
	src, dst := otherRepo(t, chunk.Gear, chunk.MinAvg, 1), otherRepo(t, chunk.Rabin, chunk.MinAvg, 2)
	extra := []byte{0xb0, 0x02, 0x07} // field 38, varint 7
	when := tree.Time{Sec: -5, Nsec: 7}
	text := random(9, 3000)
	id := &repo.ID{7}
	rec := &repo.Snapshot{Name: "host", Label: "label", Note: "note", Tags: []string{"a", "b"}, Time: epoch, End: epoch.Add(time.Second), Host: "h", Program: "p",
		Paths: []repo.Path{"/a", "/b\xff"}, Exclude: []string{"*.o"}, Parent: id, Unread: 2, Problem: []string{"x"}, Changed: 3, Mode: "light",
		System: []byte(`{"kind":"db"}`), Members: []repo.Member{{Name: "dir", State: "complete", Start: epoch, End: epoch, Version: "1", Writer: "w", Signature: []byte("s")}, {Name: "gone"}},
		Repairs: id, Lost: &repo.Lost{Files: 1}, Stats: repo.Stats{New: 1, Modified: 2, Unchanged: 3, ReadBytes: 99}, Extra: map[string]json.RawMessage{"later": []byte("[1]")}}
	s := crafted(t, src, rec, func(put tree.Put, data func([]byte) chunk.ID, add func(tree.Entry)) {
		kid := tree.NewDirWriter(put)
		if err := kid.Add(&tree.Entry{Attr: tree.Attr{Name: "kid", Kind: tree.FIFO, Nlink: 1}}); err != nil {
			t.Fatal(err)
		}
		d := tree.Entry{Attr: tree.Attr{Name: "dir", Kind: tree.Dir, Mode: 0o1777, UID: 1, GID: 2, Mtime: when}, Scope: true, LostNames: true, Flags: 64, Extra: extra}
		if err := kid.Finish(&d); err != nil {
			t.Fatal(err)
		}
		rec.Members[0].Tree.ID, rec.Members[1].Tree.ID = d.Root, chunk.ID{1}
		add(tree.Entry{Attr: tree.Attr{Name: "dev", Kind: tree.CharDevice, Rdev: 0x103}})
		add(d)
		f := tree.Entry{Attr: tree.Attr{Name: "file", Kind: tree.File, Mode: 0o4755, Mtime: when, Nlink: 3, Changed: true}, LostXattrs: true, Extra: extra}
		rw := tree.NewRecipeWriter(put)
		for _, x := range []tree.Extent{{Len: 3000, Kind: tree.Data, End: tree.EndSplitter, ID: data(text)}, {Len: 700, Kind: tree.Lost, End: tree.EndMax}, {Len: 5000, Kind: tree.Absent, End: tree.EndSource},
			{Len: 4096, Kind: tree.Hole, End: tree.EndSource}, {Len: 8192, Kind: tree.Zero, End: tree.EndZero}, {Len: 3000, Kind: tree.Data, End: tree.EndSource, ID: data(text)}, {Len: 3000, Kind: tree.Data, ID: data(text)}} {
			if err := rw.Add(x); err != nil {
				t.Fatal(err)
			}
		}
		if err := rw.Finish(&f); err != nil {
			t.Fatal(err)
		}
		add(f)
		l := f
		l.Name, l.Link = "link", "elsewhere/first"
		if err := l.SetXattrs([]tree.Xattr{{Name: "user.x", Value: random(4, 1000)}}, put); err != nil {
			t.Fatal(err)
		}
		l.LostXattrs = false
		add(l)
		add(tree.Entry{Attr: tree.Attr{Name: "sym", Kind: tree.Symlink, Target: "t\xff"}, Xattrs: []tree.Xattr{{Name: "user.y", Value: []byte("v")}}})
	})
	got := mustCopy(t, NewCopier(src, dst, CopyOptions{}), CopyJob{Snapshot: s, Parent: &repo.ID{8}})
	was, is := entries(t, src, s), entries(t, dst, got)
	if len(is) != len(was) {
		t.Fatalf("%d entries of %d", len(is), len(was))
	}
	for i := range was {
		a, b := was[i], is[i]
		if (a.Kind == tree.Dir || a.Kind == tree.File) && a.Root == b.Root && a.Recipe == b.Recipe {
			t.Errorf("%s: the copy has pages of the original", a.Name)
		}
		ids := func(e *tree.Entry) {
			e.Root, e.Recipe, e.XattrPage, e.Extents = chunk.ID{}, chunk.ID{}, chunk.ID{}, nil
		}
		if was[i].XattrPage.IsZero() != is[i].XattrPage.IsZero() {
			t.Errorf("%s: its extended attributes are elsewhere", a.Name)
		}
		ids(&a)
		ids(&b)
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s:\n%+v\nthe copy:\n%+v", a.Name, a, b)
		}
	}
	kinds := func(r *repo.Repo, e *tree.Entry) (list []string) {
		get := func(id chunk.ID) ([]byte, error) { return r.Store().Page(t.Context(), id) }
		for x, err := range tree.Recipe(get, e) {
			if err != nil {
				t.Fatal(err)
			}
			if x.Kind == tree.Data { // cut anew: only where it ends is known
				if n := len(list); x.End == tree.EndSplitter || x.End == tree.EndMax || n > 0 && list[n-1] == "data" {
					continue
				}
			}
			list = append(list, fmt.Sprintf("%d-%d kind %d end %d", x.Off, x.Off+x.Len, x.Kind, x.End))
		}
		return list
	}
	var ends []string
	for _, line := range kinds(dst, &is[2]) {
		_, line, _ = strings.Cut(line, "-")
		ends = append(ends, line)
	}
	want := []string{"3000 kind 1 end 4", "3700 kind 5 end 2", "8700 kind 4 end 4", "12796 kind 3 end 4", "20988 kind 2 end 3", "23988 kind 1 end 4", "26988 kind 1 end 0"}
	if !slices.Equal(ends, want) {
		t.Errorf("the file ends its extents so:\n%q, want\n%q", ends, want)
	}
	if x, err := at(t, dst, got, "link").Xattrs(t.Context()); err != nil || len(x) != 1 || !bytes.Equal(x[0].Value, random(4, 1000)) {
		t.Errorf("extended attributes: %v, %v", x, err)
	}

	wantRec := *rec
	wantRec.ID, wantRec.Tree, wantRec.Witness, wantRec.Parent = got.ID, got.Tree, got.Witness, &repo.ID{8}
	wantRec.Members = slices.Clone(rec.Members)
	wantRec.Members[0].Signature, wantRec.Members[0].Tree.ID, wantRec.Members[1].Tree.ID = nil, is[1].Root, chunk.ID{}
	wantRec.Stats.ReadBytes, wantRec.Stats.NewBytes, wantRec.Stats.Stored = got.Stats.ReadBytes, got.Stats.NewBytes, got.Stats.Stored
	wantRec.Origin = &repo.Origin{Repo: src.Config().Repo, ID: s.ID}
	if wantRec.Copied, _ = src.Backend().Get(t.Context(), "snapshots/"+s.ID.String(), 0, -1); len(wantRec.Copied) == 0 {
		t.Fatal("no record")
	}
	if !reflect.DeepEqual(&wantRec, got) {
		t.Errorf("record\n%+v\nthe copy:\n%+v", &wantRec, got)
	}
}

// TestCopyRefuses: a tree that cannot be read whole, or that no program made, is
// not copied, and says of what it is; what a record claims costs no time.
func TestCopyRefuses(t *testing.T) {
	file := func(name string, xs ...tree.Extent) tree.Entry {
		e := tree.Entry{Attr: tree.Attr{Name: name, Kind: tree.File, Nlink: 1}, Extents: xs}
		for _, x := range xs {
			e.Size += x.Len
		}
		return e
	}
	page := func(put tree.Put, es ...tree.Entry) chunk.ID {
		p := []byte{1, byte(tree.DirPage), 0, byte(len(es))}
		for i := range es {
			item := tree.AppendEntry(nil, &es[i])
			p = append(binary.AppendUvarint(p, uint64(len(item))), item...)
		}
		id, err := put(p)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	below := func(root chunk.ID, n uint64) tree.Entry {
		return tree.Entry{Attr: tree.Attr{Name: "dir", Kind: tree.Dir, Nlink: 1}, Root: root, Children: n, Below: tree.Totals{Nodes: n}}
	}
	for _, tt := range []struct {
		name string
		make func(put tree.Put, add func(tree.Entry))
		want error
		says string
	}{
		{"a missing chunk", func(_ tree.Put, add func(tree.Entry)) {
			add(file("f", tree.Extent{Len: 5, Kind: tree.Data, ID: chunk.ID{1}}))
		}, chunk.ErrMissing, `"/f"`},
		{"a missing page", func(_ tree.Put, add func(tree.Entry)) { add(below(chunk.ID{1}, 1)) }, chunk.ErrMissing, `"/dir"`},
		{"a missing recipe", func(_ tree.Put, add func(tree.Entry)) {
			add(tree.Entry{Attr: tree.Attr{Name: "f", Kind: tree.File, Size: 9, Nlink: 1}, Recipe: chunk.ID{1}})
		}, chunk.ErrMissing, `"/f"`},
		{"missing attributes", func(_ tree.Put, add func(tree.Entry)) {
			add(tree.Entry{Attr: tree.Attr{Name: "p", Kind: tree.FIFO, Nlink: 1}, XattrPage: chunk.ID{1}})
		}, chunk.ErrMissing, `"/p"`},
		{"names in disorder", func(put tree.Put, add func(tree.Entry)) { add(below(page(put, file("b"), file("a")), 2)) }, chunk.ErrCorrupt, ""},
		{"a name twice", func(put tree.Put, add func(tree.Entry)) { add(below(page(put, file("a"), file("a")), 2)) }, chunk.ErrCorrupt, ""},
		{"a recipe that is too short", func(put tree.Put, add func(tree.Entry)) {
			f := file("f")
			rw := tree.NewRecipeWriter(put)
			for range 9 {
				if err := rw.Add(tree.Extent{Len: 5, Kind: tree.Hole}); err != nil {
					t.Fatal(err)
				}
			}
			if err := rw.Finish(&f); err != nil {
				t.Fatal(err)
			}
			f.Size++
			add(f)
		}, chunk.ErrCorrupt, `"/f"`},
		{"very deep", func(put tree.Put, add func(tree.Entry)) {
			e := file("f")
			for range maxDepth {
				e = below(page(put, e), 1)
			}
			add(e)
		}, chunk.ErrCorrupt, "deeper"},
		{"zeros without end", func(_ tree.Put, add func(tree.Entry)) {
			add(file("f", tree.Extent{Len: 1 << 60, Kind: tree.Zero}, tree.Extent{Len: 1 << 59, Kind: tree.Hole}))
		}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src, dst := otherRepo(t, chunk.Gear, chunk.MinAvg, 1), otherRepo(t, chunk.Rabin, chunk.MinAvg, 2)
			s := crafted(t, src, &repo.Snapshot{Name: "host", Time: epoch}, func(put tree.Put, _ func([]byte) chunk.ID, add func(tree.Entry)) { tt.make(put, add) })
			c := NewCopier(src, dst, CopyOptions{})
			_, err := c.Copy(t.Context(), CopyJob{Snapshot: s})
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %v that names %s", err, tt.want, tt.says)
			}
			snaps, lerr := dst.Snapshots(t.Context())
			if lerr != nil || (len(snaps) == 0) != (err != nil) {
				t.Errorf("%d snapshots, %v", len(snaps), lerr)
			}
			for info, err := range dst.Backend().List(t.Context(), "intents/") {
				t.Errorf("%s is left, %v", info.Name, err)
			}
			// The next snapshot is none the worse.
			good := mustRun(t, src, dir("", fileOf("g", "text")), nil)
			if got := mustCopy(t, c, CopyJob{Snapshot: good}); contents(t, at(t, dst, got, "g")) != "text" {
				t.Error("the next copy holds other bytes")
			}
		})
	}
}

func fileOf(name, text string) *mem { return file(name, []byte(text)) }
