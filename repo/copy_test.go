package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// likePair returns a repository and an empty one with its secrets.
func likePair(t *testing.T) (src, dst *Repo) {
	t.Helper()
	src = testInit(t, backend.NewMem())
	dst, err := Init(t.Context(), backend.NewMem(), InitOptions{Like: src}, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dst.Close() })
	if !src.SameSecrets(dst) || !dst.SameSecrets(src) {
		t.Fatal("a repository that was made like another has other secrets")
	}
	return src, dst
}

func copyText(seed, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 5}).Read(p)
	return p
}

// flat makes a snapshot of one file of these chunks.
func flat(t *testing.T, r *Repo, chunks ...[]byte) *Snapshot {
	t.Helper()
	s := testBegin(t, r)
	data, meta := s.Writer.Stream(pack.Data), s.Writer.Stream(pack.Meta)
	put := func(p []byte) (chunk.ID, error) {
		id := r.k.Tree.Sum(p)
		_, err := meta.Put(id, p)
		return id, err
	}
	rw := tree.NewRecipeWriter(put)
	for _, p := range chunks {
		id := r.k.Data.Sum(p)
		_, err := data.Put(id, p)
		if err := errors.Join(err, rw.Add(tree.Extent{Len: int64(len(p)), Kind: tree.Data, End: tree.EndSource, ID: id})); err != nil {
			t.Fatal(err)
		}
	}
	f := tree.Entry{Attr: tree.Attr{Name: "f", Kind: tree.File, Nlink: 1}}
	dw, tw := tree.NewDirWriter(put), tree.NewDirWriter(put)
	top, page := tree.Entry{Attr: tree.Attr{Name: tree.RootName, Kind: tree.Dir, Nlink: 1}}, tree.Entry{}
	if err := errors.Join(rw.Finish(&f), dw.Add(&f), dw.Finish(&top)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tw.Add(&top), tw.Finish(&page)); err != nil {
		t.Fatal(err)
	}
	data.Flush()
	meta.Flush()
	rec := &Snapshot{Name: "host", Time: start, Tree: PageID{page.Root}, Totals: top.Below}
	if err := s.Commit(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

// copyOver copies a snapshot as it is.
func copyOver(t *testing.T, c *PackCopier, s *Snapshot) (*Snapshot, error) {
	t.Helper()
	rec, err := c.src.CopyRecord(t.Context(), s)
	if err != nil {
		return nil, err
	}
	w := testBegin(t, c.dst)
	if err := c.Tree(t.Context(), w, rec.Tree, rec.Witness); err != nil {
		w.Abort(t.Context())
		return nil, err
	}
	if err := w.Commit(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	c.Committed(w)
	return rec, nil
}

func wantWhole(t *testing.T, r *Repo, snapshots uint64) {
	t.Helper()
	fresh := testOpen(t, r.b) // knows what segments say, and nothing else
	res, err := fresh.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { t.Errorf("damage: %s %s %s: %v", d.Object, d.Chunk, d.Path, d.Err) })
	if err != nil || res.Snapshots != snapshots {
		t.Errorf("%d snapshots, %v; want %d", res.Snapshots, err, snapshots)
	}
}

// TestPackCopier: frames of which most is needed come over as they are, others
// chunk by chunk, into packs of other names; and what is there already does not
// come again.
func TestPackCopier(t *testing.T) {
	src, dst := likePair(t)
	var a, b, some [][]byte
	for i := range 40 { // four chunks in a frame
		a = append(a, copyText(i, 1000))
		b = append(b, copyText(100+i, 1000))
	}
	for i, p := range b {
		if i%4 == 0 {
			some = append(some, p)
		}
	}
	flat(t, src, b...)
	first, second := flat(t, src, a...), flat(t, src, append(some, a[:20]...)...)
	var p PackCopyProgress
	c, ok := NewPackCopier(src, dst, &p)
	if !ok {
		t.Fatal("the secrets are not the same")
	}
	if n, err := src.NewBytes(t.Context(), []*Snapshot{second}, []*Snapshot{first}); err != nil || n != 10*1000 {
		t.Errorf("%d bytes are new in the second, %v; want 10000", n, err)
	}
	got, err := copyOver(t, c, first)
	if err != nil {
		t.Fatal(err)
	}
	if got.Tree != first.Tree || p.Frames.Load() < 10 || p.Chunks.Load() != 0 {
		t.Errorf("tree %s of %s, %d frames and %d chunks were copied", got.Tree, first.Tree, p.Frames.Load(), p.Chunks.Load())
	}
	frames := p.Frames.Load()
	if _, err = copyOver(t, c, second); err != nil {
		t.Fatal(err)
	}
	// Pages lie alone in their frames; of the data nothing does.
	if n := p.Chunks.Load(); n != 10 {
		t.Errorf("of frames that are little needed %d chunks came one by one, want 10", n)
	}
	if n := p.Frames.Load() - frames; n == 0 || n > 3 {
		t.Errorf("%d frames came for the pages of the second", n)
	}
	wantWhole(t, dst, 2)
	frames, chunks := p.Frames.Load(), p.Chunks.Load()
	c, _ = NewPackCopier(src, dst, &p) // knows nothing of the first
	if _, err := copyOver(t, c, first); err != nil {
		t.Fatal(err)
	}
	if p.Frames.Load() != frames || p.Chunks.Load() != chunks {
		t.Error("what was there came again")
	}
	theirs := strings.Join(names(t, src.b, "packs/"), " ")
	for _, name := range names(t, dst.b, "packs/") {
		if strings.Contains(theirs, name) {
			t.Errorf("%s has a name of the source's", name)
		}
	}
}

// TestPackCopierDistrusts: of a pack that may not be leaned on no frame is taken
// over, for the copier would sign what nobody proved.
func TestPackCopierDistrusts(t *testing.T) {
	src, dst := likePair(t)
	s := flat(t, src, copyText(1, 1000), copyText(2, 1000), copyText(3, 1000))
	bad := LedgerEntry{Time: start, Depth: "hash", OK: false}
	l := Ledger{V: 1, Time: start}
	for name := range src.ix.Packs() {
		bad.Pack = name.String()
		l.Entries = append(l.Entries, bad)
	}
	put(t, src, src.k, "ledger/00000000000000000000000000000001", 'L', 1, l)
	var p PackCopyProgress
	c, _ := NewPackCopier(src, dst, &p)
	if _, err := copyOver(t, c, s); err != nil {
		t.Fatal(err)
	}
	if p.Frames.Load() != 0 || p.Chunks.Load() == 0 {
		t.Errorf("%d frames were taken over, %d chunks copied", p.Frames.Load(), p.Chunks.Load())
	}
	wantWhole(t, dst, 1)
}

// TestPackCopierDamage: a pack of the source that is damaged is passed over where
// its chunks lie elsewhere too, and else ends the copy of that snapshot alone.
func TestPackCopierDamage(t *testing.T) {
	for _, healthy := range []bool{true, false} {
		t.Run(fmt.Sprintf("healthy copy %t", healthy), func(t *testing.T) {
			src, dst := likePair(t)
			s := flat(t, src, copyText(1, 1000), copyText(2, 1000), copyText(3, 1000))
			other := flat(t, src, copyText(9, 500))
			var data string
			for name, info := range src.ix.Packs() {
				if locs, _ := src.ix.Lookup(src.k.Data.Sum(copyText(1, 1000)), nil); info.Kind == pack.Data && locs[0].Pack == name {
					data = name.Object()
				}
			}
			if healthy {
				w, err := src.begin(t.Context(), func(pack.Name) bool { return false })
				if err != nil {
					t.Fatal(err)
				}
				store(t, src, w, string(copyText(1, 1000)), string(copyText(2, 1000)), string(copyText(3, 1000)))
				w.Abort(t.Context())
			}
			b := get(t, src.b, data)
			at := bytes.Index(b, []byte("cutbank")) + 1240
			b[at] ^= 1
			replace(t, src.b, data, b)
			c, _ := NewPackCopier(testOpen(t, src.b), dst, nil)
			_, err := copyOver(t, c, s)
			if healthy != (err == nil) || err != nil && !errors.Is(err, chunk.ErrCorrupt) {
				t.Fatalf("copied: %v", err)
			}
			if _, err := copyOver(t, c, other); err != nil {
				t.Errorf("the other snapshot: %v", err)
			}
			n := uint64(1)
			if healthy {
				n++
			}
			wantWhole(t, dst, n)
		})
	}
}

// TestOrigins: a snapshot is known again as a copy, as a copy of a copy, and where
// it came from.
func TestOrigins(t *testing.T) {
	a, b := likePair(t)
	_, other := likePair(t)
	s := flat(t, a, copyText(1, 100))
	ab, _ := NewPackCopier(a, b, nil)
	x, err := copyOver(t, ab, s)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Init(t.Context(), backend.NewMem(), InitOptions{Like: a}, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	bc, _ := NewPackCopier(b, c, nil)
	y, err := copyOver(t, bc, x)
	if err != nil {
		t.Fatal(err)
	}
	want := Origin{a.cfg.Repo, s.ID}
	if a.OriginOf(s) != want || b.OriginOf(x) != want || c.OriginOf(y) != want {
		t.Errorf("one snapshot has origins %v, %v, %v", a.OriginOf(s), b.OriginOf(x), c.OriginOf(y))
	}
	record := get(t, a.b, "snapshots/"+s.ID.String())
	if !bytes.Equal(x.Copied, record) || !bytes.Equal(y.Copied, record) {
		t.Error("the copies do not hold the original's record")
	}
	snaps, err := c.Snapshots(t.Context())
	if err != nil || len(snaps) != 1 || c.Origins(snaps)[want] != snaps[0] {
		t.Errorf("%v, %v", snaps, err)
	}
	if other.SameSecrets(a) {
		t.Error("strangers have the same secrets")
	}
	if _, err := a.Forget(t.Context(), []ID{s.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.CopyRecord(t.Context(), s); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a forgotten snapshot: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.NewBytes(ctx, []*Snapshot{x}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
