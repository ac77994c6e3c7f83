package snapshotter

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

// TestLinksRaced changes one of two names of a file between the moment that
// both were listed and the moment that the first is opened. No name that is
// still there may be missing.
func TestLinksRaced(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(dir string) error
		want   map[string]string
	}{
		{"first unlinked", func(d string) error { return os.Remove(d + "/a") }, map[string]string{"b": "hello", "z": "other"}},
		{"second unlinked", func(d string) error { return os.Remove(d + "/b") }, map[string]string{"a": "hello", "b": "hello", "z": "other"}},
		{"first replaced", func(d string) error {
			if err := os.WriteFile(d+"/t", []byte("new"), 0o644); err != nil {
				return err
			}
			return os.Rename(d+"/t", d+"/a")
		}, map[string]string{"a": "new", "b": "hello", "z": "other"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"a": "hello", "z": "other"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Link(dir+"/a", dir+"/b"); err != nil {
				t.Fatal(err)
			}
			n, err := source.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			r := newRepo(t, chunk.Gear)
			s := mustRun(t, r, n, func(o *Options) {
				o.Filter = func(p string, _ *tree.Attr) Take {
					if p == "z" { // both names are listed, and wait in a batch
						if err := tt.change(dir); err != nil {
							t.Error(err)
						}
					}
					return Whole
				}
			})
			root := at(t, r, s, "")
			var want []string
			for name, text := range tt.want {
				want = append(want, name)
				if got := contents(t, at(t, r, s, name)); got != text {
					t.Errorf("%s holds %q, want %q", name, got, text)
				}
			}
			slices.Sort(want)
			if got := names(t, root); !slices.Equal(got, want) {
				t.Errorf("names %v, want %v", got, want)
			}
		})
	}
}

// TestHugeSparse: a file that claims more than can be stored is a problem of
// its own, and no other's.
func TestHugeSparse(t *testing.T) {
	huge := file("huge", nil)
	huge.attr.Size = 5 << 60
	r := newRepo(t, chunk.Gear)
	s, err := try(t, r, dir("", file("a", []byte("a")), huge), nil)
	if s == nil || s.Unread != 1 {
		t.Fatalf("%v: %+v", err, s)
	}
	if got := contents(t, at(t, r, s, "a")); got != "a" {
		t.Errorf("a holds %q", got)
	}
}

// TestSizesEndAlike: where a file ends says nothing of the way it came in.
func TestSizesEndAlike(t *testing.T) {
	r := newRepo(t, chunk.Rabin)
	least := r.Config().Splitter.Min
	for _, n := range []int{1, least - 1, least, least + 1, 2 * least} {
		data := random(uint64(n), n)
		live := mustRun(t, r, dir("", file("f", data)), nil)
		in, err := Stdin("f", bytes.NewReader(data), tree.TimeOf(epoch.Add(-time.Hour)))
		if err != nil {
			t.Fatal(err)
		}
		piped := mustRun(t, r, in, nil)
		var ends [2][]tree.Extent
		for i, s := range []tree.Node{at(t, r, live, "f"), at(t, r, piped, "f")} {
			for x, err := range s.(tree.Extenter).Extents(t.Context(), 0) {
				if err != nil {
					t.Fatal(err)
				}
				ends[i] = append(ends[i], x)
			}
		}
		if !slices.Equal(ends[0], ends[1]) {
			t.Errorf("%d bytes: %v as a file, %v as a stream", n, ends[0], ends[1])
		}
	}
}
