package repo

import (
	"errors"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/index"
)

// TestPlantedKey: who may write to the storage puts a key and a config of their
// own there, open to all. Who has a password must not be led to write for it.
func TestPlantedKey(t *testing.T) {
	theirs := backend.NewMem()
	testInit(t, theirs) // its key needs no password
	b := backend.NewMem()
	for _, name := range append(names(t, theirs, "keys/"), names(t, theirs, "config/")...) {
		if err := b.Put(t.Context(), name, get(t, theirs, name)); err != nil {
			t.Fatal(err)
		}
	}
	opt := testOptions(t)
	opt.NoOpenKeys = true
	opt.Password = func() (string, error) { return "secret", nil }
	if r, err := Open(t.Context(), b, opt); !errors.Is(err, ErrKey) {
		t.Errorf("opened %v, %v", r, err)
	}
}

// TestJunkHidesNothing: what does not prove itself neither hides a snapshot nor
// keeps the repository shut.
func TestJunkHidesNothing(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	s := commit(t, r, Snapshot{})
	for _, name := range []string{"forgotten/" + s.ID.String(), "config/999", "writers/" + s.ID.String() + "-1"} {
		if err := b.Put(t.Context(), name, []byte("junk")); err != nil {
			t.Fatal(err)
		}
	}
	again := testOpen(t, b)
	snaps, err := again.Snapshots(t.Context())
	if err != nil || len(snaps) != 1 {
		t.Errorf("%d snapshots, %v", len(snaps), err)
	}
}

// TestOthersCannotDrop: a segment of who may only add makes nobody forget a
// pack, nor believe a listing that its writer did not sign.
func TestOthersCannotDrop(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	s, err := r.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st := s.Writer.Stream(pack.Data)
	id := r.SecretKeys().Data.Sum([]byte("a chunk"))
	if _, err := st.Put(id, []byte("a chunk")); err != nil {
		t.Fatal(err)
	}
	st.Flush()
	s.Abort(t.Context())
	node := addWriter(t, r, "node*")
	seg := &index.Segment{}
	for name := range r.Index().Packs() {
		seg.Dropped = append(seg.Dropped, name)
	}
	var name index.SegmentName
	name[0] = 1
	p, err := node.Seal(name.Object(), seal.KindSegment, seal.ForList, index.AppendSegment(nil, seg), random)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), name.Object(), p); err != nil {
		t.Fatal(err)
	}
	again := testOpen(t, b)
	if err := again.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := again.Store().Data(t.Context(), id); err != nil || string(got) != "a chunk" {
		t.Errorf("%q, %v", got, err)
	}
}
