package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/index"
)

// packOf stores a pack of one chunk, which no segment lists.
func packOf(t *testing.T, r *Repo, k *seal.Keys, text []byte) *pack.Trailer {
	t.Helper()
	b, err := pack.NewBuilder(k, pack.Data, [16]byte{9}, random, nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := seal.AppendFrame(nil, [][]byte{text})
	b.Add(seal.Pack(nil, plain, seal.Fastest), len(plain), []pack.Chunk{{ID: k.Data.Sum(text), Len: uint32(len(text))}})
	p, trailer, err := b.Finish(k, random)
	if err == nil {
		err = r.b.Put(t.Context(), trailer.Name.Object(), p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return trailer
}

// list publishes a listing as k would.
func list(t *testing.T, r *Repo, k *seal.Keys, trailer *pack.Trailer) {
	t.Helper()
	var name index.SegmentName
	if _, err := random.Read(name[:]); err != nil {
		t.Fatal(err)
	}
	p, err := k.Seal(name.Object(), seal.KindSegment, seal.ForList, index.AppendSegment(nil, &index.Segment{Packs: []*pack.Trailer{trailer}}), random)
	if err == nil {
		err = r.b.Put(t.Context(), name.Object(), p)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// claiming returns a listing of the pack, signed by k, that has another chunk in
// the place of its own. All else is as the pack says.
func claiming(t *testing.T, k *seal.Keys, trailer *pack.Trailer, id chunk.ID) *pack.Trailer {
	t.Helper()
	c := *trailer
	c.Frames = []pack.Frame{trailer.Frames[0]}
	c.Frames[0].Chunks = []pack.Chunk{{ID: id, Len: trailer.Frames[0].Chunks[0].Len}}
	if err := c.Sign(k); err != nil {
		t.Fatal(err)
	}
	return &c
}

// TestWholePackFalselyListed: a pack holds what it says itself, so reading it shows
// nothing; its writer lists something else that many will store. Nobody may lean on
// that after a verification, and not if that is listed only then.
func TestWholePackFalselyListed(t *testing.T) {
	popular, own := []byte("what everybody stores some day"), bytes.Repeat([]byte("junk "), 50)
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			b := backend.NewMem()
			r := testInit(t, b)
			node := addWriter(t, r, "node*")
			trailer := packOf(t, r, node, own)
			false_ := claiming(t, node, trailer, r.k.Data.Sum(popular))
			if when == "before" {
				list(t, r, node, false_)
			} else {
				list(t, r, node, trailer)
			}
			r = testOpen(t, b)
			var found []Damage
			if _, err := r.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { found = append(found, d) }); err != nil {
				t.Fatal(err)
			}
			verified, err := r.Verified(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if named := len(found) == 1 && contains(found[0].Err, "listed"); named != (when == "before") || verified[trailer.Name].OK != (when == "after") {
				t.Errorf("found %v, the ledger says %+v", found, verified[trailer.Name])
			}
			if when == "after" {
				list(t, r, node, false_)
			}
			for _, who := range []*Repo{r, testOpen(t, b)} {
				s := testBegin(t, who)
				if known, err := s.Writer.Known(who.k.Data.Sum(popular)); known || err != nil {
					t.Errorf("leans on what the writer lists: %v", err)
				}
				s.Abort(t.Context())
			}
			snap := flat(t, r, popular)
			again := testOpen(t, b)
			if err := again.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, err := again.store.Data(t.Context(), r.k.Data.Sum(popular)); err != nil || !bytes.Equal(got, popular) {
				t.Errorf("%s reads %q, %v", snap.Name, got, err)
			}
		})
	}
}

// TestLeanedOnThenListedAnew: others lean on a pack that was verified. Its writer
// then lists it as if it held nothing that anybody needs, to have it pruned away.
func TestLeanedOnThenListedAnew(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	node := addWriter(t, r, "node*")
	text := bytes.Repeat([]byte("shared "), 50)
	trailer := packOf(t, r, node, text)
	list(t, r, node, trailer)
	r = testOpen(t, b)
	if _, err := r.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { t.Errorf("%s: %v", d.Object, d.Err) }); err != nil {
		t.Fatal(err)
	}
	flat(t, r, text)
	if len(names(t, b, "packs/")) != 2 { // its own has only pages
		t.Fatal("nobody leans on the pack")
	}
	for range 8 { // whatever is read first
		list(t, r, node, claiming(t, node, trailer, chunk.ID{1}))
	}
	again := testOpen(t, b)
	for range 2 {
		if _, err := again.Prune(t.Context(), PruneOptions{MaxRepack: -1}); err != nil {
			t.Fatal(err)
		}
	}
	last := testOpen(t, b)
	if err := last.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := last.store.Data(t.Context(), r.k.Data.Sum(text)); err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestOthersPackFalselyListed: a writer lists a pack that another has stored, who
// did not come to list it. Verifying makes the truth known, and blames nobody else.
func TestOthersPackFalselyListed(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	honest, hostile := addWriter(t, r, "honest*"), addWriter(t, r, "hostile*")
	text := bytes.Repeat([]byte("honest "), 50)
	trailer := packOf(t, r, honest, text)
	list(t, r, hostile, claiming(t, hostile, trailer, chunk.ID{1}))
	r = testOpen(t, b)
	if _, err := r.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { t.Errorf("%s: %v", d.Object, d.Err) }); err != nil {
		t.Fatal(err)
	}
	again := testOpen(t, b)
	s := testBegin(t, again)
	if known, err := s.Writer.Known(r.k.Data.Sum(text)); !known || err != nil {
		t.Errorf("what was verified is not leaned on: %v", err)
	}
	s.Abort(t.Context())
}

// TestStrangersWords: what only the owner may say, said by a writer or by somebody
// whom nobody knows, stops nobody and is named by verify.
func TestStrangersWords(t *testing.T) {
	ring, err := seal.NewRing("00", random)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"writer", "stranger"} {
		t.Run(who, func(t *testing.T) {
			b := backend.NewMem()
			r := testInit(t, b)
			k := addWriter(t, r, "node*")
			revoked := k.Self().String()
			if who == "stranger" {
				k = stranger
			}
			r = testOpen(t, b)
			s := commit(t, r, Snapshot{}, "a chunk")
			if _, _, err := r.RevokeWriter(t.Context(), revoked); err != nil {
				t.Fatal(err)
			}
			id := sampleID(5)
			words := map[string]struct {
				kind seal.Kind
				v    any
			}{
				"condemned/" + id.String():        {seal.KindCondemned, Condemned{V: 1, ID: id, Packs: []string{"00112233445566778899aabbccddeeff"}}},
				"condemned/" + id.String() + ".1": {seal.KindCondemned, Condemned{V: 1, ID: id}},
				"marks/" + s.ID.String() + "-1":   {seal.KindMark, Mark{V: 1, ID: s.ID, Op: MarkExpire, Until: start}},
				"forgotten/" + s.ID.String():      {seal.KindForgotten, Forgotten{V: 1, ID: s.ID}},
				"writers/" + revoked + "-900":     {seal.KindWriter, Writer{V: 1, Public: make([]byte, 32), Names: []string{"*"}}},
				"ledger/" + id.String():           {seal.KindLedger, Ledger{V: 1}},
				"config/77":                       {seal.KindConfig, Config{V: 1}},
			}
			for name, w := range words {
				put(t, r, k, name, w.kind, seal.ForList, w.v)
			}
			r = testOpen(t, b)
			snaps, err := r.Snapshots(t.Context())
			if err != nil || len(snaps) != 1 || snaps[0].MarkErr != nil || !snaps[0].Expires.IsZero() {
				t.Fatalf("%d snapshots, %v", len(snaps), err)
			}
			commit(t, r, Snapshot{})
			if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Errorf("prune: %v", err)
			}
			if w, _ := r.registered(revoked); w.newer != nil || w.Revoked.IsZero() {
				t.Errorf("the revocation is in doubt: %v", w.newer)
			}
			named := fmt.Sprint(damageIn(t, r))
			for name := range words {
				if there := strings.Contains(strings.Join(names(t, b, ""), " "), name); there && !strings.Contains(named, name) {
					t.Errorf("verify does not name %s, but %s", name, named)
				}
			}
			if _, err := r.Prune(t.Context(), PruneOptions{DiscardDamaged: true}); err != nil || len(names(t, b, "condemned/")) != 0 {
				t.Errorf("they cannot be removed: %v", err)
			}
		})
	}
}

// TestRevokeBesideJunk: a writer takes all the names that its revocation could
// have.
func TestRevokeBesideJunk(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	node := addWriter(t, r, "node*")
	r = testOpen(t, b)
	for n := 2; n < 1000; n++ {
		if err := b.Put(t.Context(), fmt.Sprintf("writers/%s-%d", node.Self(), n), []byte("junk")); err != nil {
			t.Fatal(err)
		}
	}
	r.opt.Logf = func(string, ...any) {}
	if _, _, err := r.RevokeWriter(t.Context(), node.Self().String()); err != nil {
		t.Fatal(err)
	}
	if w, _ := testOpen(t, b).registered(node.Self().String()); w.Revoked.IsZero() || w.newer != nil {
		t.Errorf("not revoked: %v", w.newer)
	}
}

// TestCrowdedRow: a page names IDs that nothing hashes to, and that would all stand
// in one row of the table.
func TestCrowdedRow(t *testing.T) {
	for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
		m := newLiveSet()
		for i := range 20_000 {
			var id chunk.ID
			id[5], id[6], id[7] = byte(i), byte(i>>8), byte(i>>16)
			if !m.add(kind, &id) || m.add(kind, &id) || !m.live(kind, &id) {
				t.Fatalf("ID %d is not kept as it should be", i)
			}
		}
		s := m.set(kind, &chunk.ID{})
		row, longest := 0, 0
		for i := 0; i < len(s.slots); i += s.words {
			if row++; s.slots[i] == 0 {
				row = 0
			}
			longest = max(longest, row)
		}
		if longest > 1000 {
			t.Errorf("%d stand in one row", longest)
		}
	}
}

// TestUntrustedOrigin: a writer says that its snapshot is another one's copy, so
// that this one seems to be copied already, or in the place of that one.
func TestUntrustedOrigin(t *testing.T) {
	src, dst := likePair(t)
	honest := flat(t, src, []byte("honest"))
	node, far := addWriter(t, src, "host"), addWriter(t, dst, "host")
	src, dst = testOpen(t, src.b), testOpen(t, dst.b)
	origin := &Origin{src.cfg.Repo, honest.ID}
	fake := sign(t, src, node, Snapshot{ID: ID{1}, Name: "host", Time: start, Tree: honest.Tree, Origin: origin, Copied: []byte("x")})
	sign(t, dst, far, Snapshot{ID: ID{1}, Name: "host", Time: start, Tree: honest.Tree, Origin: origin, Copied: []byte("x")})
	there, err := dst.Snapshots(t.Context())
	if err != nil || len(there) != 1 {
		t.Fatalf("%d snapshots, %v", len(there), err)
	}
	if dst.Origins(there)[*origin] != nil || dst.Trusts(there[0]) {
		t.Error("the honest snapshot seems to be copied")
	}
	here, err := src.Snapshots(t.Context())
	if err != nil || len(here) != 2 {
		t.Fatalf("%d snapshots, %v", len(here), err)
	}
	if got := src.Origins(here); len(got) != 2 || got[*origin] == nil || got[*origin].ID != honest.ID {
		t.Errorf("%v", got)
	}
	for _, s := range here {
		c, err := src.CopyRecord(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if *c.Origin != (Origin{src.cfg.Repo, s.ID}) || c.Seen.IsZero() != (s.ID == honest.ID) {
			t.Errorf("the copy of %s says that it is one of %s, seen at %s", s.ID, c.Origin.ID, c.Seen)
		}
		if o, err := seal.Parse(c.Copied); err != nil || s.ID == fake.ID && o.Writer != node.Self() {
			t.Errorf("the copy of %s does not hold it: %v", s.ID, err)
		}
	}
}

// TestCopiesAreJudgedByTheirWriters: what a writer dated back goes on being doubted
// where the owner has copied it to, and pushes out nobody else's copies.
func TestCopiesAreJudgedByTheirWriters(t *testing.T) {
	now := start.AddDate(0, 0, 10)
	of := func(n byte, author string, day int, seen time.Time) *Snapshot {
		return &Snapshot{ID: ID{n}, Name: "web", Writer: "owner", author: author, Time: start.AddDate(0, 0, day), ModTime: now, Seen: seen}
	}
	honest, late := of(1, "there", 1, time.Time{}), of(2, "node", 2, start.AddDate(0, 0, 2).Add(time.Hour))
	back := of(3, "node", 1, start.AddDate(0, 0, 9))
	ds := Decide([]*Snapshot{honest, back, late}, Policy{Last: 1, Owner: "owner"}, now)
	for i, want := range []struct{ keep, doubted bool }{{true, false}, {true, true}, {true, false}} {
		if ds[i].Keep != want.keep || ds[i].Doubted != want.doubted {
			t.Errorf("snapshot %d: %+v", i+1, ds[i])
		}
	}
	if ds := Decide([]*Snapshot{back}, Policy{Last: 1, Owner: "owner", TrustDates: true}, now); ds[0].Doubted {
		t.Errorf("%+v", ds[0])
	}
	// Of oneself what others have seen means nothing.
	lying := of(4, "", 1, start.AddDate(0, 0, 1))
	lying.Writer = "node"
	if ds := Decide([]*Snapshot{lying}, Policy{Last: 1, Owner: "owner"}, now); !ds[0].Doubted {
		t.Errorf("%+v", ds[0])
	}
}

// TestLargeRecordIsNotCopied: a record that leaves no room for its copy's is an
// error of that snapshot, as damage is, and not of all copying.
func TestLargeRecordIsNotCopied(t *testing.T) {
	r := testInit(t, backend.NewMem())
	noise := make([]byte, 3<<20)
	if _, err := random.Read(noise); err != nil {
		t.Fatal(err)
	}
	commit(t, r, Snapshot{Note: fmt.Sprintf("%x", noise[:1<<20])})
	commit(t, r, Snapshot{Note: fmt.Sprintf("%x", noise)})
	snaps, err := r.Snapshots(t.Context())
	if err != nil || len(snaps) != 2 {
		t.Fatalf("%d snapshots, %v", len(snaps), err)
	}
	for _, s := range snaps {
		c, err := r.CopyRecord(t.Context(), s)
		if fits := len(s.Note) < 5<<20; fits && (err != nil || c == nil) || !fits && !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("with a note of %d bytes: %v", len(s.Note), err)
		}
	}
}

// future shows signs of life from long after now.
type future struct{ backend.Backend }

func (f future) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		for info, err := range f.Backend.List(ctx, prefix) {
			if strings.HasPrefix(info.Name, "intents/") {
				info.ModTime = info.ModTime.AddDate(50, 0, 0)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestBeatFromTheFuture: an intent whose time somebody has made up is not waited
// for until then.
func TestBeatFromTheFuture(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	old := flat(t, r, []byte("to be forgotten"))
	flat(t, r, []byte("to stay"))
	if _, err := r.Forget(t.Context(), []ID{old.ID}); err != nil {
		t.Fatal(err)
	}
	id := sampleID(7)
	put(t, r, r.k, intentName(id), seal.KindIntent, seal.ForList, Intent{V: 1, ID: id})
	res, err := testOpen(t, future{b}).Prune(t.Context(), PruneOptions{MaxRepack: -1})
	if err != nil || len(res.Waiting) != 0 || len(res.Dead) != 1 || res.Removed.Packs == 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestSalvageBesideFalseListings: of a damaged pack others have listed whatever they
// like, to have what is still in it given up.
func TestSalvageBesideFalseListings(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	honest, hostile := addWriter(t, r, "honest*"), addWriter(t, r, "hostile*")
	r = testOpen(t, b)
	text := bytes.Repeat([]byte("honest "), 50)
	trailer := packOf(t, r, honest, text)
	list(t, r, honest, trailer)
	bare := *trailer
	bare.Frames = nil
	if err := bare.Sign(hostile); err != nil {
		t.Fatal(err)
	}
	keyed := *trailer
	var err error
	if keyed.Epoch, keyed.Wrapped, err = hostile.Wrap(trailer.Name.Object(), make([]byte, 32)); err == nil {
		err = keyed.Sign(hostile)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		list(t, r, hostile, &bare)
		list(t, r, hostile, &keyed)
	}
	p := get(t, b, trailer.Name.Object())
	end := int(trailer.Frames[0].Off + trailer.Frames[0].Stored)
	for what, damage := range map[string]func([]byte){
		"the closing hash": func(p []byte) { p[len(p)-1] ^= 1 },
		"the trailer":      func(p []byte) { clear(p[end:]) },
	} {
		torn := bytes.Clone(p)
		damage(torn)
		all, _, err := r.listings(t.Context(), func(name pack.Name) bool { return name == trailer.Name })
		if err != nil || len(all[trailer.Name]) != 3 {
			t.Fatalf("%d listings, %v", len(all[trailer.Name]), err)
		}
		s, err := r.newSalvage(trailer.Name, torn, all[trailer.Name]...)
		if err != nil {
			t.Fatal(err)
		}
		read, lost, err := s.frames(func(f salvagedFrame) error {
			if !bytes.Equal(f.chunks[0], text) {
				return errors.New("another chunk")
			}
			return nil
		})
		if read != 1 || lost != 0 || err != nil {
			t.Errorf("%s: %d frames read, %d lost, %v", what, read, lost, err)
		}
	}
}
