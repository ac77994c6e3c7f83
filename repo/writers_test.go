package repo

import (
	"errors"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// addNode registers a writer and returns its credential.
func addNode(t testing.TB, r *Repo, nw NewWriter) (seal.WriterID, []byte) {
	t.Helper()
	var cred []byte
	id, err := r.AddWriter(t.Context(), nw, func(p []byte) error { cred = p; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return id, cred
}

// openAs opens the repository with a credential, at a time.
func openAs(t testing.TB, b backend.Backend, cred []byte, now time.Time) (*Repo, error) {
	t.Helper()
	opt := testOptions(t)
	opt.Credential = cred
	opt.Now = func() time.Time { return now }
	r, err := Open(t.Context(), b, opt)
	if err == nil {
		t.Cleanup(func() { r.Close() })
	}
	return r, err
}

func mustOpenAs(t testing.TB, b backend.Backend, cred []byte) *Repo {
	t.Helper()
	r, err := openAs(t, b, cred, start)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sign puts a record that a writer's keys sign, whatever its program would say.
func sign(t testing.TB, r *Repo, k *seal.Keys, rec Snapshot) *Snapshot {
	t.Helper()
	if rec.ID == (ID{}) {
		var err error
		if rec.ID, err = r.newID(); err != nil {
			t.Fatal(err)
		}
	}
	rec.V = 1
	put(t, r, k, "snapshots/"+rec.ID.String(), seal.KindSnapshot, seal.ForEpoch, &rec)
	return &rec
}

func count(t testing.TB, r *Repo) int {
	t.Helper()
	snaps, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(snaps)
}

// TestWriterLife takes a writer from its registration to its revocation.
func TestWriterLife(t *testing.T) {
	b := backend.NewMem()
	owner := testInit(t, b)
	id, cred := addNode(t, owner, NewWriter{Names: []string{"web-*", "db"}, Expires: start.Add(90 * 24 * time.Hour), Note: "rack 7"})
	node := mustOpenAs(t, b, cred)
	if !node.WriteOnly() || owner.WriteOnly() || node.SecretKeys().Self() != id {
		t.Fatalf("write-only: node %v, owner %v", node.WriteOnly(), owner.WriteOnly())
	}
	first := commit(t, node, Snapshot{Name: "web-1"}, "a chunk")
	for name, want := range map[string]error{"web-1": nil, "db": nil, "db2": ErrRefused, "host": ErrRefused} {
		if err := node.MayWrite(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	s := testBegin(t, node)
	if err := s.Commit(t.Context(), &Snapshot{Name: "host", Time: start}); !errors.Is(err, ErrRefused) {
		t.Errorf("a name that is not allowed was committed: %v", err)
	}
	if n := len(names(t, b, "intents/")); n != 0 {
		t.Errorf("%d intents are left", n)
	}
	if n := count(t, owner); n != 1 {
		t.Errorf("%d snapshots", n)
	}
	list, err := owner.Writers(t.Context())
	if err != nil || len(list) != 1 || list[0].Last == nil || list[0].Last.ID != first.ID || list[0].Snapshots != 1 || list[0].Note != "rack 7" {
		t.Fatalf("writers %+v, %v", list, err)
	}
	info, accepted, err := owner.RevokeWriter(t.Context(), id.String()[:6])
	if err != nil || accepted != 1 || info.ID != id || info.Revoked.IsZero() {
		t.Fatalf("revoked %+v, %d, %v", info, accepted, err)
	}
	if _, accepted, err := owner.RevokeWriter(t.Context(), id.String()); err != nil || accepted != 1 || len(names(t, b, "writers/")) != 2 {
		t.Errorf("revoked twice: %d, %v", accepted, err)
	}
	if _, err := node.Begin(t.Context()); !errors.Is(err, ErrRefused) {
		t.Errorf("its own program goes on: %v", err)
	}
	if n := count(t, owner); n != 1 {
		t.Errorf("what it wrote before is %d snapshots", n)
	}
}

// TestRevokedWriter: nothing that is signed after a revocation counts, whatever
// time and ID it bears, in a process that was open before and in a new one.
func TestRevokedWriter(t *testing.T) {
	b := backend.NewMem()
	owner := testInit(t, b)
	id, cred := addNode(t, owner, NewWriter{Names: []string{"*"}})
	node := mustOpenAs(t, b, cred)
	kept := commit(t, node, Snapshot{Name: "web"})
	late := commit(t, node, Snapshot{Name: "late"})
	reader := testOpen(t, b)
	if count(t, reader) != 2 {
		t.Fatal("two snapshots were there")
	}
	if err := b.Remove(t.Context(), "snapshots/"+late.ID.String()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := owner.RevokeWriter(t.Context(), id.String()); err != nil {
		t.Fatal(err)
	}
	k := node.SecretKeys()
	sign(t, owner, k, Snapshot{Name: "web", Time: start.Add(-1000 * time.Hour), Tree: kept.Tree}) // back-dated
	sign(t, owner, k, *late)                                                                      // once there, not when it was revoked
	for what, r := range map[string]*Repo{"open before": reader, "opened now": testOpen(t, b)} {
		snaps, err := r.Snapshots(t.Context())
		if err != nil || len(snaps) != 1 || snaps[0].ID != kept.ID {
			t.Errorf("%s: %d snapshots, %v", what, len(snaps), err)
		}
	}
	// Another record in the place of one that was accepted.
	if err := b.Remove(t.Context(), "snapshots/"+kept.ID.String()); err != nil {
		t.Fatal(err)
	}
	forged := *kept
	forged.Note = "forged"
	sign(t, owner, k, forged)
	again := testOpen(t, b)
	if n := count(t, again); n != 0 {
		t.Errorf("%d snapshots, one of them forged", n)
	}
	if _, err := again.record(t.Context(), kept.ID); !errors.Is(err, ErrRefused) || errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("the forged one: %v", err)
	}
	res, err := again.Check(t.Context(), CheckOptions{}, func(d Damage) { t.Errorf("damage: %v", d.Err) })
	if err != nil || len(res.Refused) != 3 {
		t.Errorf("check: refused %v, %v", res.Refused, err)
	}
}

func TestExpiredWriter(t *testing.T) {
	b := backend.NewMem()
	owner := testInit(t, b)
	end := start.Add(time.Hour)
	_, cred := addNode(t, owner, NewWriter{Names: []string{"*"}, Expires: end})
	node := mustOpenAs(t, b, cred)
	commit(t, node, Snapshot{Time: end})
	sign(t, owner, node.SecretKeys(), Snapshot{Name: "host", Time: end.Add(time.Second)})
	if n := count(t, owner); n != 1 {
		t.Errorf("%d snapshots, want the one in time", n)
	}
	late, err := openAs(t, b, cred, end.Add(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Begin(t.Context()); !errors.Is(err, ErrRefused) {
		t.Errorf("its own program goes on: %v", err)
	}
}

// TestUnreadableWriter: where a newer word about a writer cannot be read, what
// the older one refuses is not refused but undecided, for it might be allowed.
func TestUnreadableWriter(t *testing.T) {
	b := backend.NewMem()
	owner := testInit(t, b)
	id, cred := addNode(t, owner, NewWriter{Names: []string{"web"}})
	node := mustOpenAs(t, b, cred)
	good := commit(t, node, Snapshot{Name: "web"})
	other := sign(t, owner, node.SecretKeys(), Snapshot{Name: "db", Time: start})
	if err := b.Put(t.Context(), "writers/"+id.String()+"-2", []byte("rot")); err != nil {
		t.Fatal(err)
	}
	r := testOpen(t, b)
	snaps, err := r.Snapshots(t.Context())
	if !errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, ErrRefused) || !contains(err, other.ID.String()) {
		t.Errorf("undecided: %v", err)
	}
	if len(snaps) != 1 || snaps[0].ID != good.ID {
		t.Errorf("%d snapshots", len(snaps))
	}
	// A revocation gets past the junk.
	if _, accepted, err := owner.RevokeWriter(t.Context(), id.String()); err != nil && !errors.Is(err, chunk.ErrCorrupt) || accepted != 1 {
		t.Fatalf("accepted %d, %v", accepted, err)
	}
	if err := b.Remove(t.Context(), "writers/"+id.String()+"-2"); err != nil {
		t.Fatal(err)
	}
	sign(t, owner, node.SecretKeys(), Snapshot{Name: "web", Time: start})
	if n := count(t, testOpen(t, b)); n != 1 {
		t.Errorf("%d snapshots", n)
	}
	// What a newer program says may take anything back.
	put(t, owner, owner.SecretKeys(), "writers/"+id.String()+"-9", seal.KindWriter, seal.ForList, map[string]int{"v": 2})
	if snaps, err := testOpen(t, b).Snapshots(t.Context()); !errors.Is(err, ErrFormat) || len(snaps) != 0 {
		t.Errorf("%d snapshots, %v", len(snaps), err)
	}
}

// TestOthersTombstones: only who prunes declares a writer dead.
func TestOthersTombstones(t *testing.T) {
	b := backend.NewMem()
	owner := testInit(t, b)
	_, cred := addNode(t, owner, NewWriter{Names: []string{"*"}})
	node := mustOpenAs(t, b, cred)
	id, err := owner.newID()
	if err != nil {
		t.Fatal(err)
	}
	put(t, owner, node.SecretKeys(), "snapshots/"+id.String(), seal.KindTombstone, seal.ForList, Tombstone{V: 1, ID: id, Time: start})
	if _, err := owner.record(t.Context(), id); !errors.Is(err, ErrRefused) {
		t.Errorf("a node's tombstone: %v", err)
	}
}

func TestAddWriterRefuses(t *testing.T) {
	b := backend.NewMem()
	owner := testInit(t, b)
	_, cred := addNode(t, owner, NewWriter{Names: []string{"*"}})
	node := mustOpenAs(t, b, cred)
	save := func([]byte) error { return nil }
	for what, nw := range map[string]NewWriter{
		"no name": {}, "an empty name": {Names: []string{""}}, "no pattern": {Names: []string{"a["}}, "over": {Names: []string{"*"}, Expires: start},
	} {
		if _, err := owner.AddWriter(t.Context(), nw, save); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	full := errors.New("disk full")
	if _, err := owner.AddWriter(t.Context(), NewWriter{Names: []string{"*"}}, func([]byte) error { return full }); !errors.Is(err, full) {
		t.Errorf("not kept: %v", err)
	}
	if _, err := node.AddWriter(t.Context(), NewWriter{Names: []string{"*"}}, save); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("a node makes writers: %v", err)
	}
	if _, _, err := node.RevokeWriter(t.Context(), "00"); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("a node revokes writers: %v", err)
	}
	if n := len(names(t, b, "writers/")); n != 1 {
		t.Errorf("%d writers", n)
	}
}

// TestTrustedWriter: others lean at once on what a trusted writer stored, and on
// what another stored not until it was verified; on neither once it is revoked.
func TestTrustedWriter(t *testing.T) {
	b := backend.NewMem()
	owner := testInit(t, b)
	for _, trusted := range []bool{true, false} {
		id, cred := addNode(t, owner, NewWriter{Names: []string{"*"}, Trusted: trusted})
		text := "from " + id.String()
		commit(t, mustOpenAs(t, b, cred), Snapshot{}, text)
		fresh := func() int {
			s := testBegin(t, owner)
			defer s.Abort(t.Context())
			known, err := s.Writer.Known(owner.SecretKeys().Data.Sum([]byte(text)))
			if err != nil {
				t.Fatal(err)
			}
			if known {
				return 0
			}
			return 1
		}
		if got := fresh(); (got == 0) != trusted {
			t.Errorf("trusted %v: %d chunks stored again", trusted, got)
		}
		if _, _, err := owner.RevokeWriter(t.Context(), id.String()); err != nil {
			t.Fatal(err)
		}
		if fresh() == 0 {
			t.Errorf("trusted %v: leaned on after it was revoked", trusted)
		}
	}
}
