package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/index"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter"
)

// addWriter registers a writer and returns its credential.
func addWriter(t testing.TB, owner *repo.Repo, nw repo.NewWriter) (seal.WriterID, []byte) {
	t.Helper()
	var cred []byte
	id, err := owner.AddWriter(t.Context(), nw, func(p []byte) error { cred = p; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return id, cred
}

// openNode opens the repository with a credential; dir is for local state, empty
// for none.
func openNode(t testing.TB, b backend.Backend, cred []byte, dir string) *repo.Repo {
	t.Helper()
	opt := options(t)
	opt.Credential, opt.CacheDir = cred, dir
	r, err := tryOpen(t, b, opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func named(name string) func(*snapshotter.Options) {
	return func(o *snapshotter.Options) { o.Name = name }
}

// secretTree writes files whose names and contents are told from all else.
func secretTree(t testing.TB, dir string) {
	t.Helper()
	for i := range 40 {
		path := filepath.Join(dir, fmt.Sprintf("hush-dir-%d", i%4), fmt.Sprintf("hush-name-%d", i))
		text := bytes.Repeat(fmt.Appendf(nil, "hush content %d; ", i), 100+i*40)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWriteOnlyOpens tries a write-only credential on every object that a
// repository can hold. The table is what it opens; nothing else opens, and what
// does tells neither contents nor names of files nor of snapshots.
func TestWriteOnlyOpens(t *testing.T) {
	b, src := newMem(), t.TempDir()
	secretTree(t, src)
	owner := initRepo(t, b, small(t))
	_, cred := addWriter(t, owner, repo.NewWriter{Names: []string{"*"}})
	snapshot(t, owner, live(t, src), named("hush-snapshot"))
	node := openNode(t, b, cred, t.TempDir())
	if err := os.WriteFile(filepath.Join(src, "hush-new"), []byte("hush, what only the node stores"), 0o600); err != nil {
		t.Fatal(err)
	}
	own := snapshot(t, node, live(t, src), named("hush-own"))
	everyKind(t, owner, random, later())
	node = openNode(t, b, cred, "") // that knows the writers too
	if err := node.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	opens := map[string]bool{"condemned": true, "config": true, "forgotten": true, "index": true, "intents": true, "ledger": true, "writers": true,
		"packs": false, "marks": false, "snapshots": false, "tombstones": true, "keys": false}
	k, seen, mine := node.SecretKeys(), map[string]int{}, 0
	for info, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		p, err := b.Get(t.Context(), info.Name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		what, _, _ := strings.Cut(info.Name, "/")
		var body []byte
		switch what {
		case "packs":
			var own bool
			body, own, err = openPack(t, k, info.Name, p)
			if own {
				mine++
			}
		case "keys":
			err = seal.ErrNoKey // what a password wraps; there is none to try
		default:
			o, perr := seal.Parse(p)
			if perr != nil {
				t.Fatal(perr)
			}
			if o.Kind == seal.KindTombstone {
				what = "tombstones"
			}
			err = k.Open(info.Name, o)
			body = o.Body
		}
		seen[what]++
		switch {
		case opens[what] && err != nil:
			t.Errorf("%s does not open: %v", info.Name, err)
		case !opens[what] && !errors.Is(err, seal.ErrNoKey):
			t.Errorf("%s: %v, want it to fail for want of a key", info.Name, err)
		case opens[what] && bytes.Contains(body, []byte("hush")):
			t.Errorf("%s tells a secret: %q", info.Name, body)
		}
	}
	for what := range opens {
		if seen[what] == 0 {
			t.Errorf("there was no object of %s", what)
		}
	}
	if mine == 0 {
		t.Error("the node stored no pack of its own")
	}
	if _, err := snapfs.NewCache(node.Store()).Open(t.Context(), own.Tree.ID); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("its own snapshot, of which it knows the root: %v", err)
	}
}

// openPack tries everything that a ring holds on a pack: the wrapped key, and
// each secret as the key of its frames. It returns the trailer, which opens.
func openPack(t testing.TB, k *seal.Keys, object string, p []byte) (trailer []byte, own bool, err error) {
	t.Helper()
	name, ok := pack.ParseObject(object)
	if !ok {
		t.Fatal(object)
	}
	tr, err := pack.ReadTrailer(k, name, int64(len(p)), func(off, n int64) ([]byte, error) { return p[off : off+n], nil })
	if err != nil {
		t.Fatalf("%s: its trailer does not open: %v", object, err)
	}
	ring := k.Ring()
	for _, secret := range [][]byte{ring.Chunk, ring.Tree, ring.List, ring.Write, k.ListKey(object), tr.Wrapped[len(tr.Wrapped)-32:]} {
		f := &tr.Frames[0]
		if _, err := seal.NewFrameKey(secret, name[:]).Open(nil, 0, bytes.Clone(p[f.Off:f.Off+f.Stored])); err == nil {
			t.Errorf("%s: a secret of the ring opens a frame", object)
		}
	}
	_, err = pack.FrameKey(k, name, tr.Epoch, tr.Wrapped)
	return pack.AppendTrailer(nil, tr), tr.Writer == k.Self(), err
}

// TestWriteOnlyReads tries every call that reads, says or removes something with
// a write-only credential: each fails for want of a key, and changes nothing.
func TestWriteOnlyReads(t *testing.T) {
	b, src := newMem(), t.TempDir()
	secretTree(t, src)
	owner := initRepo(t, b, small(t))
	id, cred := addWriter(t, owner, repo.NewWriter{Names: []string{"*"}})
	theirs := snapshot(t, owner, live(t, src), nil)
	node := openNode(t, b, cred, "")
	own := snapshot(t, node, live(t, src), named("own"))
	if err := owner.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := dump(t, b)
	var chunks []chunk.ID
	for name := range owner.Index().Packs() {
		p, err := b.Get(t.Context(), name.Object(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := pack.ReadTrailer(node.SecretKeys(), name, int64(len(p)), func(off, n int64) ([]byte, error) { return p[off : off+n], nil })
		if err != nil {
			t.Fatal(err)
		}
		tr.Locations(func(id chunk.ID, _ pack.Location) { chunks = append(chunks, id) })
	}
	if len(chunks) < 50 {
		t.Fatalf("only %d chunks", len(chunks))
	}
	for _, id := range chunks {
		if p, err := node.Store().Data(t.Context(), id); !errors.Is(err, seal.ErrNoKey) {
			t.Fatalf("chunk %s: %d bytes, %v", id, len(p), err)
		}
		if p, err := node.Store().Page(t.Context(), id); !errors.Is(err, seal.ErrNoKey) {
			t.Fatalf("page %s: %d bytes, %v", id, len(p), err)
		}
	}
	if snaps, err := node.Snapshots(t.Context()); err != nil || len(snaps) != 0 {
		t.Errorf("%d snapshots, %v", len(snaps), err)
	}
	ctx := t.Context()
	for what, call := range map[string]func() error{
		"restore":    func() error { return restoreTo(ctx, node, theirs, t.TempDir()) },
		"its own":    func() error { return restoreTo(ctx, node, own, t.TempDir()) },
		"check":      func() error { _, err := node.Check(ctx, repo.CheckOptions{}, func(repo.Damage) {}); return err },
		"forget":     func() error { _, err := node.Forget(ctx, []repo.ID{own.ID}); return err },
		"mark":       func() error { return node.AddMark(ctx, own.ID, repo.Mark{Op: repo.MarkPin}) },
		"prune":      func() error { _, err := node.Prune(ctx, repo.PruneOptions{}); return err },
		"repair":     func() error { _, err := node.Repair(ctx, repo.RepairOptions{}, func(repo.RepairStep) {}); return err },
		"rotate":     func() error { _, err := node.RotateKeys(ctx, repo.RotateOptions{}); return err },
		"key":        func() error { _, err := node.AddKey(ctx, "x", ""); return err },
		"remove key": func() error { _, err := node.RemoveKey(ctx, "0"); return err },
		"writer":     func() error { _, err := node.AddWriter(ctx, repo.NewWriter{Names: []string{"*"}}, nil); return err },
		"revoke":     func() error { _, _, err := node.RevokeWriter(ctx, id.String()); return err },
		"mode":       func() error { _, err := node.SetAppendOnly(ctx, true, repo.AppendOnlyOptions{}); return err },
		"like": func() error {
			_, err := repo.Init(ctx, newMem(), repo.InitOptions{Like: node}, options(t))
			return err
		},
	} {
		if err := call(); !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("%s: %v, want it to fail for want of a key", what, err)
		}
	}
	if after := dump(t, b); !slices.Equal(before, after) {
		t.Errorf("something was changed: %d objects, now %d", len(before), len(after))
	}
}

// dump lists all objects with their hashes.
func dump(t testing.TB, b backend.Backend) []string {
	t.Helper()
	var list []string
	for info, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		p, err := b.Get(t.Context(), info.Name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%s %x", info.Name, chunk.Digest(p)))
	}
	return list
}

// TestWriteOnlyConfirms: what a write-only credential can find out, as the threat
// model says: whether bytes that it knows are stored, and how long a chunk is.
func TestWriteOnlyConfirms(t *testing.T) {
	b := newMem()
	owner := initRepo(t, b, small(t))
	_, cred := addWriter(t, owner, repo.NewWriter{Names: []string{"*"}})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("guess me"), 0o600); err != nil {
		t.Fatal(err)
	}
	snapshot(t, owner, live(t, dir), nil)
	node := openNode(t, b, cred, "")
	if err := node.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{"guess me": true, "no such file": false} {
		locs, err := node.Index().Lookup(node.SecretKeys().Data.Sum([]byte(text)), nil)
		if err != nil || (len(locs) > 0) != want || want && locs[0].Len != uint32(len(text)) {
			t.Errorf("%q: %v, %v", text, locs, err)
		}
	}
}

// TestWriteOnlyUnchanged: a node reads nothing again that has not changed,
// although it cannot read the repository; and without what it kept it reads
// everything, and makes the same tree.
func TestWriteOnlyUnchanged(t *testing.T) {
	b, src, cache := newMem(), t.TempDir(), t.TempDir()
	little(t, src, 1)
	owner := initRepo(t, b, small(t))
	_, cred := addWriter(t, owner, repo.NewWriter{Names: []string{"host"}})
	first := snapshot(t, openNode(t, b, cred, cache), live(t, src), nil)
	if first.Stats.ReadBytes == 0 {
		t.Fatal("the first snapshot read nothing")
	}
	second := snapshot(t, openNode(t, b, cred, cache), live(t, src), nil)
	if second.Stats.ReadBytes != 0 || second.Stats.Unchanged == 0 || second.Tree != first.Tree || second.Parent == nil || *second.Parent != first.ID {
		t.Errorf("second: %+v, parent %v", second.Stats, second.Parent)
	}
	// What was taken over is kept for another time too: recipes, which nothing
	// else puts again.
	if s := snapshot(t, openNode(t, b, cred, cache), live(t, src), nil); s.Stats.ReadBytes != 0 {
		t.Errorf("once more: %+v", s.Stats)
	}
	little(t, src, 2)
	third := snapshot(t, openNode(t, b, cred, cache), live(t, src), nil)
	if third.Stats.ReadBytes == 0 || third.Stats.ReadBytes > 600_000 || third.Stats.Unchanged < 5 {
		t.Errorf("third: %+v", third.Stats)
	}
	fourth := snapshot(t, openNode(t, b, cred, cache), live(t, src), nil)
	if fourth.Stats.ReadBytes != 0 || fourth.Tree != third.Tree {
		t.Errorf("fourth: %+v", fourth.Stats)
	}
	bare := snapshot(t, openNode(t, b, cred, ""), live(t, src), nil)
	if bare.Stats.ReadBytes == 0 || bare.Tree != third.Tree {
		t.Errorf("without local state: %+v, tree %s, want %s", bare.Stats, bare.Tree, third.Tree)
	}
	reader := open(t, b)
	for _, s := range snapshots(t, reader)[3:] {
		sameRestored(t, "what a node stored", reader, s, live(t, src))
	}
	clean(t, "a node's snapshots", reader)
}

// TestWriteOnlyAfterPrune: what was kept names chunks that are gone since: they
// are stored again.
func TestWriteOnlyAfterPrune(t *testing.T) {
	b, src, cache := newMem(), t.TempDir(), t.TempDir()
	little(t, src, 1)
	owner := initRepo(t, b, small(t))
	_, cred := addWriter(t, owner, repo.NewWriter{Names: []string{"host"}})
	first := snapshot(t, openNode(t, b, cred, cache), live(t, src), nil)
	if _, err := owner.Forget(t.Context(), []repo.ID{first.ID}); err != nil {
		t.Fatal(err)
	}
	for info, err := range b.List(t.Context(), "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Remove(t.Context(), info.Name); err != nil {
			t.Fatal(err)
		}
	}
	again := snapshot(t, openNode(t, b, cred, cache), live(t, src), nil)
	reader := open(t, b)
	sameRestored(t, "after a prune", reader, again, live(t, src))
}

// claims are the chunks that a snapshot of src will need, as the trailers of a
// repository with the same secrets list them.
func claims(t testing.TB, owner *repo.Repo, src string) (list []*pack.Trailer) {
	t.Helper()
	b := newMem()
	r := initRepo(t, b, repo.InitOptions{Like: owner})
	snapshot(t, r, live(t, src), nil)
	for info, err := range b.List(t.Context(), "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		name, _ := pack.ParseObject(info.Name)
		tr, err := pack.ReadTrailer(r.SecretKeys(), name, info.Size, func(off, n int64) ([]byte, error) { return b.Get(context.Background(), info.Name, off, n) })
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, tr)
	}
	return list
}

// lie stores packs whose signed trailers list the claimed chunks, and whose
// frames hold others, and publishes them.
func lie(t testing.TB, node *repo.Repo, list []*pack.Trailer) []pack.Name {
	t.Helper()
	k, b := node.SecretKeys(), node.Backend()
	var lies []*pack.Trailer
	var names []pack.Name
	for _, claim := range list {
		builder, err := pack.NewBuilder(k, claim.Kind, [16]byte{1}, random, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range claim.Frames {
			var junk [][]byte
			for _, c := range f.Chunks {
				junk = append(junk, bytes.Repeat([]byte("junk"), int(c.Len)/4+1)[:c.Len])
			}
			plain := seal.AppendFrame(nil, junk)
			builder.Add(seal.Pack(nil, plain, seal.Fastest), len(plain), f.Chunks)
		}
		p, tr, err := builder.Finish(k, random)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Put(t.Context(), tr.Name.Object(), p); err != nil {
			t.Fatal(err)
		}
		lies, names = append(lies, tr), append(names, tr.Name)
	}
	putSegment(t, node, &index.Segment{Packs: lies})
	return names
}

func putSegment(t testing.TB, r *repo.Repo, s *index.Segment) {
	t.Helper()
	var name index.SegmentName
	if _, err := random.Read(name[:]); err != nil {
		t.Fatal(err)
	}
	p, err := r.SecretKeys().Seal(name.Object(), seal.KindSegment, seal.ForList, index.AppendSegment(nil, s), random)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Backend().Put(t.Context(), name.Object(), p); err != nil {
		t.Fatal(err)
	}
}

// TestHostileWriter: a registered writer signs trailers that claim chunks which
// it never stored. Snapshots that others make after it, before and after the
// owner looked at the packs, restore whole; the lie is named; and prune takes the
// lies for nobody's holders.
func TestHostileWriter(t *testing.T) {
	b, src := newMem(), t.TempDir()
	little(t, src, 1)
	owner := initRepo(t, b, small(t))
	_, evil := addWriter(t, owner, repo.NewWriter{Names: []string{"evil"}})
	_, good := addWriter(t, owner, repo.NewWriter{Names: []string{"good"}})
	lies := lie(t, openNode(t, b, evil, ""), claims(t, owner, src))
	node := openNode(t, b, good, t.TempDir())
	reader := open(t, b)
	byNode := snapshot(t, node, live(t, src), named("good"))
	byOwner := snapshot(t, reader, live(t, src), nil)
	whole := func(what string) {
		t.Helper()
		r := open(t, b)
		for _, s := range []*repo.Snapshot{byNode, byOwner} {
			sameRestored(t, what+": "+s.Name, r, s, live(t, src))
		}
	}
	whole("beside the lies")

	found := map[string]bool{}
	if _, err := reader.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) { found[d.Object] = true }); err != nil {
		t.Fatal(err)
	}
	for _, name := range lies {
		if !found[name.Object()] {
			t.Errorf("%s is not found to lie", name)
		}
	}
	after := snapshot(t, open(t, b), live(t, src), func(o *snapshotter.Options) { o.NoParent = true })
	sameRestored(t, "after the check", open(t, b), after, live(t, src))

	for range 2 {
		if _, err := open(t, b).Prune(t.Context(), repo.PruneOptions{Grace: time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	whole("after prune")
}

// TestHostileSegment: a registered writer publishes a listing under the name of
// an honest pack, with other contents, and one that replaces and drops what
// others listed. Nobody believes it for long.
func TestHostileSegment(t *testing.T) {
	b, src := newMem(), t.TempDir()
	little(t, src, 1)
	owner := initRepo(t, b, small(t))
	_, evil := addWriter(t, owner, repo.NewWriter{Names: []string{"evil"}})
	first := snapshot(t, owner, live(t, src), nil)
	node := openNode(t, b, evil, "")
	seg := &index.Segment{}
	for info, err := range b.List(t.Context(), "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		name, _ := pack.ParseObject(info.Name)
		tr, err := pack.ReadTrailer(node.SecretKeys(), name, info.Size, func(off, n int64) ([]byte, error) { return b.Get(context.Background(), info.Name, off, n) })
		if err != nil {
			t.Fatal(err)
		}
		other := *tr
		other.Writer = node.SecretKeys().Self()
		other.Frames = slices.Clone(tr.Frames)
		for i := range other.Frames {
			f := &other.Frames[i]
			if f.Chunks = slices.Clone(f.Chunks); len(f.Chunks) > 1 {
				slices.Reverse(f.Chunks) // each at another's place
			} else {
				f.Chunks[0].ID = chunk.ID{9, byte(i)}
			}
		}
		if err := other.Sign(node.SecretKeys()); err != nil {
			t.Fatal(err)
		}
		seg.Packs = append(seg.Packs, &other)
		seg.Dropped = append(seg.Dropped, name)
	}
	for info, err := range b.List(t.Context(), "index/") {
		if err != nil {
			t.Fatal(err)
		}
		if name, ok := index.ParseSegmentName(info.Name); ok {
			seg.Replaced = append(seg.Replaced, name)
		}
	}
	putSegment(t, node, seg)
	for _, cache := range []string{"", t.TempDir()} {
		opt := options(t)
		opt.CacheDir = cache
		r, err := tryOpen(t, b, opt)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		sameRestored(t, "made before", r, first, live(t, src))
		s := snapshot(t, r, live(t, src), func(o *snapshotter.Options) { o.NoParent = true })
		sameRestored(t, "made after", open(t, b), s, live(t, src))
	}
}

// TestHostileRecords: records of a registered writer count under its names, in
// its time, and as long as it is not revoked; the others stop nobody.
func TestHostileRecords(t *testing.T) {
	b, src := newMem(), t.TempDir()
	little(t, src, 1)
	owner := initRepo(t, b, small(t))
	id, cred := addWriter(t, owner, repo.NewWriter{Names: []string{"web-*"}, Expires: later().Add(24 * time.Hour)})
	node := openNode(t, b, cred, "")
	good := snapshot(t, node, live(t, src), named("web-1"))
	if _, err := trySnapshot(t, node, live(t, src), named("db")); !errors.Is(err, repo.ErrRefused) {
		t.Errorf("another's name: %v", err)
	}
	sign := func(name string, at time.Time) {
		rec := *good
		rec.Name, rec.Time = name, at
		if _, err := random.Read(rec.ID[:]); err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(&rec)
		if err != nil {
			t.Fatal(err)
		}
		object := "snapshots/" + rec.ID.String()
		p, err := node.SecretKeys().Seal(object, seal.KindSnapshot, seal.ForEpoch, body, random)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Put(t.Context(), object, p); err != nil {
			t.Fatal(err)
		}
	}
	only := func(what string) {
		t.Helper()
		list := snapshots(t, open(t, b))
		if len(list) != 1 || list[0].ID != good.ID {
			t.Errorf("%s: %d snapshots", what, len(list))
		}
	}
	sign("db", later())
	only("another's name")
	sign("web-1", later().Add(48*time.Hour))
	only("too late")
	if _, accepted, err := owner.RevokeWriter(t.Context(), id.String()); err != nil || accepted != 1 {
		t.Fatalf("accepted %d, %v", accepted, err)
	}
	sign("web-1", later().Add(-1000*time.Hour))
	only("dated back after it was revoked")
	if _, err := trySnapshot(t, node, live(t, src), named("web-1")); !errors.Is(err, repo.ErrRefused) {
		t.Errorf("its program goes on: %v", err)
	}
	// They need no chunk, and are in nobody's way.
	for range 2 {
		if _, err := open(t, b).Prune(t.Context(), repo.PruneOptions{Grace: time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	only("after prune")
	sameRestored(t, "after prune", open(t, b), good, live(t, src))
	clean(t, "after prune", open(t, b))
}
