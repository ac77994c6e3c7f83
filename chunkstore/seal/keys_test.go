package seal_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func TestNewRing(t *testing.T) {
	a, err := seal.NewRing("00", testRandom(3))
	if err != nil {
		t.Fatal(err)
	}
	b, err := seal.NewRing("00", testRandom(3))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Chunk, b.Chunk) || !bytes.Equal(a.Tree, b.Tree) || !bytes.Equal(a.List, b.List) || !bytes.Equal(a.Seed, b.Seed) {
		t.Error("equal randomness makes other secrets")
	}
	if bytes.Equal(a.Chunk, a.Tree) || bytes.Equal(a.Tree, a.List) || bytes.Equal(a.List, a.Seed) {
		t.Error("two secrets are the same bytes")
	}
	if bytes.Equal(a.Epochs[0].Private, b.Epochs[0].Private) {
		t.Error("key pairs are not random")
	}
	if _, err := seal.NewRing("00", strings.NewReader("too little")); err == nil {
		t.Error("a ring was made without randomness")
	}
	k := open(t, a)
	if k.Self() != k.Owner() || k.Ring() != a {
		t.Error("the keys of a new ring are not the owner's")
	}
}

func TestRingJSONKeepsUnknownFields(t *testing.T) {
	p, err := json.Marshal(testRing(t))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(p, &m); err != nil {
		t.Fatal(err)
	}
	m["later"] = map[string]any{"deep": []any{1.0, "two"}}
	m["epochs"].([]any)[1].(map[string]any)["retired"] = "2030-01-01"
	newer, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	r := &seal.Ring{}
	if err := json.Unmarshal(newer, r); err != nil {
		t.Fatal(err)
	}
	open(t, r)
	again, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(again, &got); err != nil {
		t.Fatal(err)
	}
	want, _ := json.Marshal(m)
	if have, _ := json.Marshal(got); !bytes.Equal(have, want) {
		t.Errorf("a ring of a newer program lost something:\n%s\nwant\n%s", have, want)
	}
}

func TestMergeJSON(t *testing.T) {
	type v struct {
		A int    `json:"a"`
		B string `json:"b,omitempty"`
	}
	tests := []struct {
		name, in, out string
		extra         int
	}{
		{"all known", `{"a":1,"b":"x"}`, `{"a":1,"b":"x"}`, 0},
		{"left out", `{"a":1}`, `{"a":1}`, 0},
		{"unknown, sorted", `{"z":null,"a":1,"c":{"d":[]}}`, `{"a":1,"c":{"d":[]},"z":null}`, 2},
		{"quoted name", `{"a":1,"\"":2}`, `{"a":1,"\"":2}`, 1},
	}
	for _, tt := range tests {
		var x v
		var extra map[string]json.RawMessage
		if err := seal.SplitJSON([]byte(tt.in), &x, &extra); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if len(extra) != tt.extra {
			t.Errorf("%s: %d fields kept, want %d", tt.name, len(extra), tt.extra)
		}
		if out, err := seal.MergeJSON(&x, extra); err != nil || string(out) != tt.out {
			t.Errorf("%s: %s, %v; want %s", tt.name, out, err, tt.out)
		}
	}
	for _, bad := range []string{"", "[]", "1", `{"a":"text"}`, `{"a":1`} {
		var x v
		var extra map[string]json.RawMessage
		if err := seal.SplitJSON([]byte(bad), &x, &extra); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if out, err := seal.MergeJSON(&struct{}{}, map[string]json.RawMessage{"a": json.RawMessage("1")}); err != nil || string(out) != `{"a":1}` {
		t.Errorf("an empty struct: %s, %v", out, err)
	}
}

func TestRingOpenRefuses(t *testing.T) {
	tests := []struct {
		name string
		do   func(*seal.Ring)
		want error
	}{
		{"no version", func(r *seal.Ring) { r.V = 0 }, chunk.ErrCorrupt},
		{"newer version", func(r *seal.Ring) { r.V = 2 }, seal.ErrVersion},
		{"short chunk key", func(r *seal.Ring) { r.Chunk = r.Chunk[1:] }, chunk.ErrCorrupt},
		{"no tree key", func(r *seal.Ring) { r.Tree = nil }, chunk.ErrCorrupt},
		{"long list key", func(r *seal.Ring) { r.List = append(r.List, 0) }, chunk.ErrCorrupt},
		{"no epoch", func(r *seal.Ring) { r.Epochs = nil }, chunk.ErrCorrupt},
		{"no owner", func(r *seal.Ring) { r.Owner = nil }, chunk.ErrCorrupt},
		{"short seed", func(r *seal.Ring) { r.Seed = r.Seed[:31] }, chunk.ErrCorrupt},
		{"long writer's seed", func(r *seal.Ring) { r.Write = make([]byte, 33) }, chunk.ErrCorrupt},
		{"public key cut short", func(r *seal.Ring) { r.Epochs[1].Public = r.Epochs[1].Public[:100] }, chunk.ErrCorrupt},
		{"no public key", func(r *seal.Ring) { r.Epochs[0].Public = nil }, chunk.ErrCorrupt},
		{"private key cut short", func(r *seal.Ring) { r.Epochs[0].Private = r.Epochs[0].Private[:5] }, chunk.ErrCorrupt},
	}
	for _, tt := range tests {
		r := testRing(t)
		tt.do(r)
		_, err := r.Open()
		wantErr(t, tt.name, err, tt.want)
	}
}

func TestWrap(t *testing.T) {
	k := testKeys(t)
	key := bytes.Repeat([]byte{0x5a}, 32)
	epoch, wrapped, err := k.Wrap("packs/aa/aa", key)
	if err != nil {
		t.Fatal(err)
	}
	if epoch != 2 || len(wrapped) != 1168 {
		t.Errorf("wrapped for epoch %d in %d bytes, want the newest, 2, and 1,168 as documented", epoch, len(wrapped))
	}
	if got, err := k.Unwrap("packs/aa/aa", epoch, wrapped); err != nil || !bytes.Equal(got, key) {
		t.Errorf("unwrapped %x, %v", got, err)
	}
	_, err = k.Unwrap("packs/bb/bb", epoch, wrapped)
	wantErr(t, "under another name", err, chunk.ErrCorrupt)
	_, err = k.Unwrap("packs/aa/aa", 1, wrapped)
	wantErr(t, "for another epoch", err, chunk.ErrCorrupt)
	_, err = k.Unwrap("packs/aa/aa", 3, wrapped)
	wantErr(t, "for an unknown epoch", err, seal.ErrNoKey)
	for _, n := range []int{0, 1, 1167} {
		_, err = k.Unwrap("packs/aa/aa", epoch, wrapped[:n])
		wantErr(t, "cut short", err, chunk.ErrCorrupt)
	}
	for i := 0; i < len(wrapped); i += 13 {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		_, err = k.Unwrap("packs/aa/aa", epoch, bad)
		wantErr(t, "flipped", err, chunk.ErrCorrupt)
	}
	_, short, err := k.Wrap("x", key[:31])
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Unwrap("x", epoch, short)
	wantErr(t, "a key of 31 bytes", err, chunk.ErrCorrupt)
	_, err = open(t, writeOnly(t)).Unwrap("packs/aa/aa", epoch, wrapped)
	wantErr(t, "without the private key", err, seal.ErrNoKey)
}

func TestEpochs(t *testing.T) {
	r := testRing(t)
	old := open(t, r)
	_, wrapped, err := old.Wrap("x", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddEpoch(); err != nil {
		t.Fatal(err)
	}
	k := open(t, r)
	epoch, _, err := k.Wrap("x", make([]byte, 32))
	if err != nil || epoch != 3 {
		t.Errorf("after AddEpoch new keys are wrapped for epoch %d, %v; want 3", epoch, err)
	}
	if _, err := k.Unwrap("x", 2, wrapped); err != nil {
		t.Errorf("what was wrapped for the epoch before: %v", err)
	}
}

func TestSignatures(t *testing.T) {
	k := testKeys(t)
	msg := []byte("message")
	sig, err := k.Sign(msg)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Verify(k.Self(), msg, sig); err != nil {
		t.Error(err)
	}
	wantErr(t, "another message", k.Verify(k.Self(), []byte("massage"), sig), chunk.ErrCorrupt)
	wantErr(t, "no signature", k.Verify(k.Self(), msg, nil), chunk.ErrCorrupt)

	w := open(t, writeOnly(t))
	if w.Self() == k.Self() || w.Owner() != k.Owner() {
		t.Error("a writer with a seed of its own signs as the owner")
	}
	if sig, err = w.Sign(msg); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a stranger", k.Verify(w.Self(), msg, sig), seal.ErrNoKey)
	k.Trust(ed25519.NewKeyFromSeed(w.Ring().Write).Public().(ed25519.PublicKey))
	if err := k.Verify(w.Self(), msg, sig); err != nil {
		t.Errorf("a writer that is trusted: %v", err)
	}
	junk := ed25519.PublicKey("junk")
	k.Trust(junk)
	wantErr(t, "a writer whose key is none", k.Verify(seal.WriterOf(junk), msg, sig), seal.ErrNoKey)

	r := testRing(t)
	r.Seed = nil
	_, err = open(t, r).Sign(msg)
	wantErr(t, "signing without a seed", err, seal.ErrNoKey)
	if !(open(t, r).Self() == seal.WriterID{}) {
		t.Error("who cannot sign has an ID")
	}
}

// TestDerived pins what is computed from the frozen ring: chunk IDs and list
// keys of version 1 never change.
func TestDerived(t *testing.T) {
	k := testKeys(t)
	for _, tt := range []struct{ what, got, want string }{
		{"data chunk", k.Data.Sum([]byte("chunk")).String(), "0b1a4aca443c7ef34482a01727fd13901021f426638ec6df6a1fc71ce190454b"},
		{"page", k.Tree.Sum([]byte("chunk")).String(), "4777b717d64df39d12da4227626ba845ac837ae77c5c20db37b36c761e5f9e49"},
		{"list key", hex.EncodeToString(k.ListKey("config/1")), "43f72d73a1db07a8902c56c758ab782e5047079884a83cbb0a78f02a8c60dc4d"},
		{"owner", k.Owner().String(), "32659040fc858eae2b9efce6ee7b664f"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %s, want %s", tt.what, tt.got, tt.want)
		}
	}
	if bytes.Equal(k.ListKey("a"), k.ListKey("b")) {
		t.Error("two names share a list key")
	}
}
