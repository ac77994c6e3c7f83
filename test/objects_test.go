package test

import (
	"crypto/ed25519"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo"
)

// everyKind adds to a repository with snapshots one object of each kind that a
// repository can hold, sealed as its commands seal them, so that what reads
// repositories meets them all.
func everyKind(t testing.TB, r *repo.Repo, random io.Reader, now time.Time) {
	t.Helper()
	k := r.SecretKeys()
	newID := func() (id repo.ID) {
		t.Helper()
		if _, err := io.ReadFull(random, id[:]); err != nil {
			t.Fatal(err)
		}
		return id
	}
	put := func(k *seal.Keys, name string, kind seal.Kind, s seal.Sealing, v any) {
		t.Helper()
		body, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		p, err := k.Seal(name, kind, s, body, random)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Backend().Put(t.Context(), name, p); err != nil {
			t.Fatal(err)
		}
	}
	last := snapshots(t, r)[0]

	// Another writer, and a snapshot that it signed.
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		t.Fatal(err)
	}
	ring := *k.Ring()
	ring.Write = seed
	other, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	put(k, "writers/"+other.Self().String()+"-1", seal.KindWriter, seal.ForList, repo.Writer{V: 1, Public: public, Names: []string{"node*"}, Note: "another node"})
	theirs := *last
	theirs.ID, theirs.Name, theirs.Label = newID(), "node1", ""
	put(other, "snapshots/"+theirs.ID.String(), seal.KindSnapshot, seal.ForEpoch, &theirs)

	gone := *last
	gone.ID, gone.Label = newID(), ""
	put(k, "snapshots/"+gone.ID.String(), seal.KindSnapshot, seal.ForEpoch, &gone)
	put(k, "forgotten/"+gone.ID.String(), seal.KindForgotten, seal.ForList, repo.Forgotten{V: 1, ID: gone.ID, Time: now})

	dead := newID()
	put(k, "intents/"+dead.String(), seal.KindIntent, seal.ForList, repo.Intent{V: 1, ID: dead, Started: now})
	put(k, "intents/"+dead.String()+".1", seal.KindIntent, seal.ForList, repo.Intent{V: 1, ID: dead, Started: now, Beat: 1})
	put(k, "snapshots/"+dead.String(), seal.KindTombstone, seal.ForList, repo.Tombstone{V: 1, ID: dead, Time: now, Why: "silent for a day"})

	put(k, "marks/"+last.ID.String()+"-1", seal.KindMark, seal.ForEpoch, repo.Mark{V: 1, ID: last.ID, Time: now, Op: "tag", Value: "kept"})
	put(k, "marks/"+last.ID.String()+"-2", seal.KindMark, seal.ForEpoch, repo.Mark{V: 1, ID: last.ID, Time: now, Op: "pin"})
	var nowhere pack.Name
	if _, err := io.ReadFull(random, nowhere[:]); err != nil {
		t.Fatal(err)
	}
	condemned := newID()
	put(k, "condemned/"+condemned.String(), seal.KindCondemned, seal.ForList, repo.Condemned{V: 1, ID: condemned, Time: now, Packs: []string{nowhere.String()}})
	put(k, "condemned/"+condemned.String()+".1", seal.KindCondemned, seal.ForList, repo.Condemned{V: 1, ID: condemned, Time: now, Wait: []repo.ID{dead}})
	put(k, "ledger/"+newID().String(), seal.KindLedger, seal.ForList, repo.Ledger{V: 1, Time: now, Entries: []repo.LedgerEntry{{Pack: nowhere.String(), Depth: "chunks", OK: true}}})
}

// kindsOf are the first parts of the names of what everyKind and a snapshot
// make.
var kindsOf = []string{"condemned", "config", "forgotten", "index", "intents", "keys", "ledger", "marks", "packs", "snapshots", "writers"}

// tiny are parameters for a repository of some ten kilobytes.
func tiny(t testing.TB, random io.Reader) repo.InitOptions {
	t.Helper()
	p, err := chunk.NewParams(chunk.Gear, chunk.MinAvg, random)
	if err != nil {
		t.Fatal(err)
	}
	return repo.InitOptions{Params: p, FrameSize: 4 << 10, PackSize: 64 << 10}
}
