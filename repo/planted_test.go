package repo

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// TestPlantedKeys: who may write to the storage, and knows no secret, puts keys
// and grants there: to be given an epoch, or to give one that they can open.
func TestPlantedKeys(t *testing.T) {
	s := newKeyed(t)
	node := addWriter(t, as(t, s.b, s.one), "node*") // may sign, but not this
	ring, err := seal.NewRing(s.one.ring.Repo, random)
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.AddEpoch(); err != nil {
		t.Fatal(err)
	}
	theirs, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	thief, err := seal.NewRecipient([32]byte{6, 6, 6})
	if err != nil {
		t.Fatal(err)
	}
	sign := func(name string, v any, k *seal.Keys) []byte {
		body, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if k == nil {
			return seal.SealClear(seal.KindKey, body)
		}
		p, err := k.Seal(name, seal.KindKey, seal.Clear, body, random)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	public := func(u *unlocked) []byte { return u.recipient.Public() }
	two, err := parseKey(keyName(s.two.id), get(t, s.b, keyName(s.two.id)))
	if err != nil {
		t.Fatal(err)
	}
	x := sampleID(0xee)
	file := keyFile{V: 1, ID: x, Created: start, Label: "laptop", KDF: "argon2id", Passes: 1, Memory: 8, Threads: 1, Ring: []byte("no ring at all"), Epoch: 1, Public: thief.Public()}
	exchanged := *two
	exchanged.Public = thief.Public()
	evil := &Repo{k: theirs, opt: testOptions(t)}
	grant := func(k *seal.Keys, to keyOwner) []byte {
		evil.k = k
		_, p, err := evil.sealGrant(to, ring.Epochs)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tt := range []struct {
		what, name string
		p          []byte
		damage     bool // verify names it
	}{
		{"an unsigned key", keyName(x), sign(keyName(x), file, nil), false},
		{"a key signed by a stranger", keyName(x), sign(keyName(x), file, theirs), true},
		{"an open key", keyName(x), sign(keyName(x), keyFile{V: 1, ID: x, KDF: "none", Ring: []byte("{}"), Public: thief.Public()}, nil), false},
		{"a key's public half exchanged, unsigned", keyName(s.two.id), sign(keyName(s.two.id), exchanged, nil), false},
		{"a key's public half exchanged, signed by a stranger", keyName(s.two.id), sign(keyName(s.two.id), exchanged, theirs), true},
		{"a grant to the owner", grantName(s.one.id, 2), grant(theirs, keyOwner{s.one.id, public(s.one), ""}), true},
		{"a grant to the owner, by a writer", grantName(s.one.id, 2), grant(node, keyOwner{s.one.id, public(s.one), ""}), true},
		{"a grant to the thief, by a writer", grantName(x, 2), grant(node, keyOwner{x, thief.Public(), ""}), true},
		{"a key signed by a writer", keyName(x), sign(keyName(x), file, node), true},
		{"a grant to another", grantName(s.two.id, 2), grant(theirs, keyOwner{s.two.id, public(s.two), ""}), true},
		{"a grant to the thief", grantName(x, 2), grant(theirs, keyOwner{x, thief.Public(), ""}), true},
		{"junk in a grant's place", grantName(s.one.id, 7), []byte("junk"), true},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := copyOf(t, s.b)
			if err := b.Remove(t.Context(), tt.name); err != nil {
				t.Fatal(err)
			}
			if err := b.Put(t.Context(), tt.name, tt.p); err != nil {
				t.Fatal(err)
			}
			r := as(t, b, s.one)
			if r.k.Newest() != 1 || r.k.Opens(2) || as(t, b, s.two).k.Opens(2) {
				t.Error("took an epoch that the owner did not give")
			}
			if found := damageIn(t, r); tt.damage != (len(found) == 1) {
				t.Errorf("check: %v", found)
			}
			_, err := r.RotateKeys(t.Context(), RotateOptions{})
			if blocked := strings.HasSuffix(tt.name, ".2") && tt.name != grantName(x, 2); blocked != (err != nil) {
				t.Errorf("rotated: %v", err)
			} else if blocked {
				// It stands in the way, is named, and can be removed.
				if !contains(err, tt.name) {
					t.Errorf("rotated: %v", err)
				}
				if err := b.Remove(t.Context(), tt.name); err != nil {
					t.Fatal(err)
				}
				rotate(t, r)
			}
			sealed := 0
			for _, name := range names(t, b, "keys/") {
				var g keyGrant
				o, err := seal.Parse(get(t, b, name))
				if err != nil || json.Unmarshal(o.Body, &g) != nil || g.Sealed == nil {
					continue
				}
				sealed++
				if _, err := thief.Open(r.bound(name), g.Sealed); err == nil && o.Writer == r.k.Owner() {
					t.Errorf("%s gives the thief the new epoch", name)
				}
			}
			if sealed < 1 {
				t.Error("no grant was looked at")
			}
		})
	}
}

// TestMovedGrant: a grant counts for one key, in one place, in one repository.
func TestMovedGrant(t *testing.T) {
	s := newKeyed(t)
	r := as(t, s.b, s.one)
	rotate(t, r)
	p := get(t, s.b, grantName(s.one.id, 2))
	for _, name := range []string{grantName(s.two.id, 3), grantName(s.one.id, 3), grantName(s.old.id, 2)} {
		if err := s.b.Put(t.Context(), name, p); err != nil {
			t.Fatal(err)
		}
		if _, err := r.readGrant(t.Context(), name); !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	name := grantName(s.one.id, 2)
	g, err := r.readGrant(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := as(t, s.b, s.two).take(name, g); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("another key takes it: %v", err)
	}
}

// TestWriteOnlyEpochs: a node that opens nothing seals for the newest epoch, also
// one that was running before.
func TestWriteOnlyEpochs(t *testing.T) {
	s := newKeyed(t)
	r := as(t, s.b, s.one)
	seed := make([]byte, ed25519.SeedSize)
	node := addWriter(t, r, "node*").Ring().Write
	copy(seed, node)
	u := &unlocked{ring: writeOnlyRing(r.k.Ring(), seed), writes: true}
	running := as(t, s.b, u)
	rotate(t, r)
	for name, w := range map[string]*Repo{"node-a": running, "node-b": as(t, s.b, u)} {
		if got := epochOf(t, r, commit(t, w, Snapshot{Name: name}, name)); got != 2 {
			t.Errorf("%s seals for epoch %d", name, got)
		}
		if _, err := w.Store().Data(t.Context(), w.k.Data.Sum([]byte(name))); !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("%s reads what it wrote: %v", name, err)
		}
	}
	wantReads(t, "the owner", as(t, s.b, s.two), 3, "node-a", "node-b")
	for n := range as(t, s.b, u).k.Ring().Epochs {
		if u.ring.Epochs[0].Private != nil || running.k.Opens(uint32(n)) {
			t.Error("a write-only ring opens an epoch")
		}
	}
}

// TestFindEpochRate: who cannot open an epoch does not ask for it all the time.
func TestFindEpochRate(t *testing.T) {
	s := newKeyed(t)
	rec := backendtest.NewRecorder(s.b)
	left := as(t, rec, s.old)
	r := as(t, s.b, s.one)
	rotate(t, r)
	commit(t, r, Snapshot{Name: "second"}, "text")
	rec.Reset()
	for range 20 {
		if _, err := left.Store().Data(t.Context(), r.k.Data.Sum([]byte("text"))); !errors.Is(err, seal.ErrNoKey) {
			t.Fatal(err)
		}
	}
	asked := 0
	for _, op := range rec.Ops() {
		if strings.HasPrefix(op.Name, "keys/") || strings.HasPrefix(op.Name, "config/") {
			asked++
		}
	}
	if asked == 0 || asked > 4 {
		t.Errorf("asked %d times", asked)
	}
}

// unreadable fails to get an object.
type unreadable struct {
	backend.Backend
	name string
}

func (u unreadable) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	if name == u.name {
		return nil, errors.New("connection reset")
	}
	return u.Backend.Get(ctx, name, off, n)
}

// TestNoOlderConfig: a config that cannot be fetched just now is no reason to
// take an older one, and with it an older epoch.
func TestNoOlderConfig(t *testing.T) {
	b := backend.NewMem()
	rotate(t, testInit(t, b))
	if r, err := Open(t.Context(), unreadable{b, "config/2"}, testOptions(t)); !contains(err, "connection reset") {
		t.Errorf("opened %v, %v", r, err)
	}
	if got := testOpen(t, b).k.Newest(); got != 2 {
		t.Errorf("epoch %d", got)
	}
}
