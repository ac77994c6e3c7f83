package seal_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func newEpoch(t *testing.T, n uint32) seal.Epoch {
	t.Helper()
	e, err := seal.NewEpoch(n)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func public(e seal.Epoch) seal.Epoch { return seal.Epoch{N: e.N, Public: e.Public} }

// wrapped returns a key that was wrapped for the newest epoch.
func wrapped(t *testing.T, k *seal.Keys) (uint32, []byte) {
	t.Helper()
	n, w, err := k.Wrap("x", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	return n, w
}

// TestPublish: what is new is sealed for what was published, whatever is known.
func TestPublish(t *testing.T) {
	k := testKeys(t) // of epochs 1 and 2
	before := k.Ring()
	third, fourth := newEpoch(t, 3), newEpoch(t, 4)
	if err := k.AddEpoch(third); err != nil {
		t.Fatal(err)
	}
	if n, _ := wrapped(t, k); n != 2 || k.Newest() != 2 || !k.Opens(3) || k.Opens(4) {
		t.Errorf("an epoch that was only added is used: %d", n)
	}
	for _, e := range []seal.Epoch{public(third), public(fourth)} {
		if err := k.Publish([]seal.Epoch{e, before.Epochs[0]}); err != nil {
			t.Fatal(err)
		}
		if n, _ := wrapped(t, k); n != e.N {
			t.Errorf("sealed for epoch %d, want %d", n, e.N)
		}
	}
	n, w := wrapped(t, k)
	_, err := k.Unwrap("x", n, w)
	wantErr(t, "before its private key is known", err, seal.ErrNoKey)
	if err := k.AddEpoch(fourth); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Unwrap("x", n, w); err != nil {
		t.Error(err)
	}
	if len(before.Epochs) != 2 || len(k.Ring().Epochs) != 4 {
		t.Errorf("rings of %d and %d epochs; one that was handed out must not change", len(before.Epochs), len(k.Ring().Epochs))
	}
	// The ring that others get opens the same.
	if n, _ := wrapped(t, open(t, k.Ring())); n != 4 {
		t.Errorf("a new ring's newest epoch is %d", n)
	}
	// Nothing is published: nothing changes.
	if err := k.Publish(nil); err != nil || k.Newest() != 4 {
		t.Errorf("%v, newest %d", err, k.Newest())
	}
}

// TestPublishWins: of two rotations at once only one was published.
func TestPublishWins(t *testing.T) {
	k := testKeys(t)
	lost, won := newEpoch(t, 3), newEpoch(t, 3)
	if err := k.AddEpoch(lost); err != nil {
		t.Fatal(err)
	}
	if err := k.Publish([]seal.Epoch{public(won)}); err != nil || k.Opens(3) {
		t.Errorf("%v; a key pair that was never published is kept: %v", err, k.Opens(3))
	}
	wantErr(t, "the lost one", k.AddEpoch(lost), chunk.ErrCorrupt)
	if err := k.AddEpoch(won); err != nil || !k.Opens(3) {
		t.Errorf("%v, opens %v", err, k.Opens(3))
	}
	if err := k.AddEpoch(public(won)); err != nil || !k.Opens(3) {
		t.Errorf("%v; the public half took the private one away", err)
	}
}

func TestAddEpochRefuses(t *testing.T) {
	k := testKeys(t)
	a, b := newEpoch(t, 3), newEpoch(t, 3)
	for what, e := range map[string]seal.Epoch{
		"no public key":     {N: 3},
		"half a public key": {N: 3, Public: a.Public[:600]},
		"half a private":    {N: 3, Public: a.Public, Private: a.Private[:16]},
		"no pair":           {N: 3, Public: a.Public, Private: b.Private},
		"another's number":  {N: 2, Public: a.Public, Private: a.Private},
	} {
		wantErr(t, what, k.AddEpoch(e), chunk.ErrCorrupt)
	}
	wantErr(t, "publish", k.Publish([]seal.Epoch{{N: 9, Public: []byte("junk")}}), chunk.ErrCorrupt)
	if k.Newest() != 2 || len(k.Ring().Epochs) != 2 {
		t.Errorf("newest %d of %d", k.Newest(), len(k.Ring().Epochs))
	}
	if e, err := seal.EpochOf(3, a.Private); err != nil || !bytes.Equal(e.Public, a.Public) {
		t.Errorf("another public key: %v", err)
	}
	_, err := seal.EpochOf(3, a.Private[1:])
	wantErr(t, "a short private key", err, chunk.ErrCorrupt)
}

// TestAddEpochKeepsFields of a newer program, where a private key is added.
func TestAddEpochKeepsFields(t *testing.T) {
	r := testRing(t)
	e := newEpoch(t, 3)
	half := public(e)
	half.Extra = map[string]json.RawMessage{"retired": json.RawMessage("1")}
	r.Epochs = append(r.Epochs, half)
	k := open(t, r)
	if err := k.AddEpoch(e); err != nil {
		t.Fatal(err)
	}
	if got := k.Ring().Epochs[2]; len(got.Private) == 0 || len(got.Extra) != 1 {
		t.Errorf("%+v", got)
	}
}

// TestOnUnknownEpoch from many goroutines; the one that is asked adds it.
func TestOnUnknownEpoch(t *testing.T) {
	e := newEpoch(t, 3)
	writer := testKeys(t)
	if err := writer.Publish([]seal.Epoch{public(e)}); err != nil {
		t.Fatal(err)
	}
	n, w := wrapped(t, writer)
	k := testKeys(t)
	var mu sync.Mutex
	asked := 0
	k.OnUnknownEpoch(func(epoch uint32) bool {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return epoch == 3 && k.AddEpoch(e) == nil
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := k.Unwrap("x", n, w); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	before := asked
	if _, err := k.Unwrap("x", n, w); err != nil || asked != before || asked == 0 {
		t.Errorf("%v, asked %d times, then %d", err, before, asked)
	}
	_, err := k.Unwrap("x", 4, w)
	wantErr(t, "one that nobody knows", err, seal.ErrNoKey)
}

func TestRecipient(t *testing.T) {
	secret := [32]byte{1, 2, 3}
	r, err := seal.NewRecipient(secret)
	if err != nil {
		t.Fatal(err)
	}
	// A secret comes to the same key pair for ever.
	if d := chunk.Digest(r.Public()); hex.EncodeToString(d[:]) != "58f4a77b28d8c62256afbaf8af58b443cc291baedab5cc720c17a654a067b895" {
		t.Errorf("the public half's hash is %x", d)
	}
	sealed, err := seal.SealTo(r.Public(), "repo/keys/a.2", []byte("epochs"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Open("repo/keys/a.2", sealed); err != nil || string(got) != "epochs" {
		t.Errorf("%q, %v", got, err)
	}
	_, err = r.Open("repo/keys/b.2", sealed)
	wantErr(t, "under another name", err, chunk.ErrCorrupt)
	other, err := seal.NewRecipient([32]byte{4})
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.Open("repo/keys/a.2", sealed)
	wantErr(t, "by another", err, chunk.ErrCorrupt)
	for i := 0; i < len(sealed); i += 17 {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		_, err = r.Open("repo/keys/a.2", bad)
		wantErr(t, "flipped", err, chunk.ErrCorrupt)
		_, err = r.Open("repo/keys/a.2", sealed[:i])
		wantErr(t, "cut short", err, chunk.ErrCorrupt)
	}
	_, err = seal.SealTo(r.Public()[1:], "x", nil)
	wantErr(t, "for half a public key", err, chunk.ErrCorrupt)
}
