package chunkstore_test

import (
	"slices"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// opened returns the frames of the packs that an index lists, as they were before
// they were sealed.
func opened(t *testing.T, b backend.Backend, ix *testIndex) (packed [][]byte, frames []*pack.Frame) {
	t.Helper()
	k := testKeys(t)
	for _, tr := range ix.all() {
		key, err := pack.FrameKey(k, tr.Name, tr.Epoch, tr.Wrapped)
		if err != nil {
			t.Fatal(err)
		}
		for i := range tr.Frames {
			f := &tr.Frames[i]
			stored, err := b.Get(t.Context(), tr.Name.Object(), int64(f.Off), int64(f.Stored))
			if err != nil {
				t.Fatal(err)
			}
			p, err := key.OpenPacked(uint32(i), stored)
			if err != nil {
				t.Fatal(err)
			}
			packed, frames = append(packed, p), append(frames, f)
		}
	}
	return packed, frames
}

// TestPutFrame: frames come into another store as they are, once.
func TestPutFrame(t *testing.T) {
	b, ix := backend.NewMem(), newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), FrameSize: 8 << 10})
	var chunks [][]byte
	for i := range 30 {
		chunks = append(chunks, content(1, i, 1000))
	}
	store(t, s, pack.Data, chunks...)
	packed, frames := opened(t, b, ix)
	if len(frames) < 3 {
		t.Fatalf("%d frames", len(frames))
	}

	other := newIndex()
	b2 := backend.NewMem()
	s2 := chunkstore.New(b2, testKeys(t), other, chunkstore.Options{Random: testRandom(2)})
	w := s2.NewWriter([16]byte{9}, usable(true))
	st := w.Stream(pack.Data)
	if _, err := st.Put(frames[0].Chunks[0].ID, chunks[0]); err != nil {
		t.Fatal(err)
	}
	st.Flush()
	for i, f := range frames {
		want := len(f.Chunks)
		if i == 0 {
			want-- // one is known
		}
		for range 2 {
			fresh, err := w.PutFrame(pack.Data, packed[i], f)
			if err != nil || fresh != want {
				t.Errorf("frame %d: %d chunks were new, %v; want %d", i, fresh, err, want)
			}
			want = 0
		}
	}
	delta := *frames[0]
	delta.Chunks = slices.Clone(delta.Chunks)
	delta.Chunks[0].Kind = pack.Delta
	if _, err := w.PutFrame(pack.Data, packed[0], &delta); err == nil || w.Err() != nil {
		t.Errorf("a frame with a delta: %v, and the session: %v", err, w.Err())
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	wantChunks(t, chunkstore.New(b2, testKeys(t), other.fresh(), chunkstore.Options{}), chunks...)
	n := 0
	for _, tr := range other.all() {
		n += len(tr.Frames)
		if tr.Session != [16]byte{9} {
			t.Errorf("pack of session %x", tr.Session)
		}
	}
	if n != len(frames)+1 {
		t.Errorf("%d frames were stored, want %d and one", n, len(frames))
	}
}

// TestLeanOn: what one session found and stored, the next one may lean on, as long
// as all of it may be leaned on.
func TestLeanOn(t *testing.T) {
	ix := newIndex()
	s := chunkstore.New(backend.NewMem(), testKeys(t), ix, chunkstore.Options{Random: testRandom(1)})
	store(t, s, pack.Data, content(1, 1, 100))
	store(t, s, pack.Data, content(1, 2, 100))
	old := ix.all()
	sum := s.Keys().Data.Sum
	w := s.NewWriter([16]byte{2}, func(n pack.Name) bool { return n == old[0].Name || n == old[1].Name })
	if known, err := w.Known(sum(content(1, 1, 100))); !known || err != nil {
		t.Fatalf("known: %t, %v", known, err)
	}
	st := w.Stream(pack.Data)
	if _, err := st.Put(sum(content(1, 3, 100)), content(1, 3, 100)); err != nil {
		t.Fatal(err)
	}
	st.Flush()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	own := ix.all()[2].Name
	leaned := w.Leaned()
	if len(leaned) != 2 || !slices.Contains(leaned, old[0].Name) || !slices.Contains(leaned, own) {
		t.Errorf("leaned on %v; want %s and its own, %s", leaned, old[0].Name, own)
	}
	for _, tt := range []struct {
		name   string
		usable []pack.Name
		want   bool
	}{
		{"all there", []pack.Name{old[0].Name, old[1].Name, own}, true},
		{"one condemned", []pack.Name{old[0].Name}, false},
		{"none", nil, false},
	} {
		next := s.NewWriter([16]byte{3}, func(n pack.Name) bool { return slices.Contains(tt.usable, n) })
		if got := next.LeanOn(leaned); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
		if got := len(next.Leaned()); got != map[bool]int{true: 2, false: 0}[tt.want] {
			t.Errorf("%s: leans on %d packs", tt.name, got)
		}
		if err := next.Close(); err != nil {
			t.Error(err)
		}
	}
	var none chunk.ID
	if known, err := w.Known(none); known || err != nil {
		t.Errorf("a chunk that is nowhere: %t, %v", known, err)
	}
}
