package seal_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func mustSeal(tb testing.TB, k *seal.Keys, name string, kind seal.Kind, s seal.Sealing, body []byte) []byte {
	tb.Helper()
	p, err := k.Seal(name, kind, s, body, testRandom(uint64(len(body))))
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestObjectRoundTrip(t *testing.T) {
	k := testKeys(t)
	random := make([]byte, 5000)
	testRandom(1).Read(random)
	for _, s := range []seal.Sealing{seal.Clear, seal.ForList, seal.ForEpoch} {
		for name, body := range map[string][]byte{
			"empty": {}, "json": []byte(`{"v":1}`), "random": random, "long": bytes.Repeat([]byte("compressible "), 100000),
		} {
			what := fmt.Sprintf("sealing %d, %s body", s, name)
			plain := bytes.Clone(body)
			p := mustSeal(t, k, "marks/1", seal.KindMark, s, body)
			if !bytes.Equal(plain, body) {
				t.Errorf("%s: Seal changed the body", what)
			}
			o, err := seal.Parse(p)
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			if o.Kind != seal.KindMark || o.Version != 1 || o.Sealing != s || o.Writer != k.Self() || o.Compressed != (s != seal.Clear && name == "long") {
				t.Errorf("%s: parsed as %+v", what, o)
			}
			if s == seal.ForEpoch && (o.Epoch != 2 || len(o.Wrapped) != 1168) || s != seal.ForEpoch && (o.Epoch != 0 || len(o.Wrapped) != 0) {
				t.Errorf("%s: epoch %d, wrapped key of %d bytes", what, o.Epoch, len(o.Wrapped))
			}
			if s != seal.Clear && len(body) > 100 && bytes.Contains(p, body[:100]) {
				t.Errorf("%s: stored in the clear", what)
			}
			if err := k.Open("marks/1", o); err != nil || !bytes.Equal(o.Body, body) {
				t.Errorf("%s: opened to %d bytes, %v", what, len(o.Body), err)
			}
			if name == "long" && s != seal.Clear && len(p) > 10000 {
				t.Errorf("%s: takes %d bytes", what, len(p))
			}
		}
	}
}

func TestObjectsAreBoundToTheirNames(t *testing.T) {
	k := testKeys(t)
	for _, s := range []seal.Sealing{seal.Clear, seal.ForList, seal.ForEpoch} {
		p := mustSeal(t, k, "config/1", seal.KindConfig, s, []byte("body"))
		if _, err := k.OpenAs("config/1", seal.KindConfig, p); err != nil {
			t.Errorf("sealing %d: %v", s, err)
		}
		_, err := k.OpenAs("config/2", seal.KindConfig, p)
		wantErr(t, "under another name", err, chunk.ErrCorrupt)
		r := testRing(t)
		r.Repo = "ffeeddccbbaa99887766554433221100"
		_, err = open(t, r).OpenAs("config/1", seal.KindConfig, p)
		wantErr(t, "in another repository of the same secrets", err, chunk.ErrCorrupt)
		_, err = k.OpenAs("config/1", seal.KindMark, p)
		wantErr(t, "as another kind", err, chunk.ErrCorrupt)
		if err != nil && !strings.Contains(err.Error(), "config/1") {
			t.Errorf("the error %q does not name the object", err)
		}
	}
	sealed, err := k.SealList("a", []byte("text"), testRandom(1))
	if err != nil || len(sealed) != 4+seal.ListOverhead {
		t.Fatalf("%d bytes, %v", len(sealed), err)
	}
	if p, err := k.OpenList("a", sealed); err != nil || string(p) != "text" {
		t.Errorf("opened %q, %v", p, err)
	}
	_, err = k.OpenList("b", sealed)
	wantErr(t, "list under another name", err, chunk.ErrCorrupt)
	for n := range sealed {
		_, err = k.OpenList("a", sealed[:n])
		wantErr(t, "list cut short", err, chunk.ErrCorrupt)
	}
}

// TestEveryFlippedByte flips a bit of each byte of an object, as it is, and with
// a closing hash that fits again, which is for the signature to find.
func TestEveryFlippedByte(t *testing.T) {
	k := testKeys(t)
	for _, s := range []seal.Sealing{seal.Clear, seal.ForList, seal.ForEpoch} {
		p := mustSeal(t, k, "intents/1", seal.KindIntent, s, []byte(`{"v":1,"id":"00"}`))
		for i := range p {
			bad := bytes.Clone(p)
			bad[i] ^= 1 << (i % 8)
			if _, err := k.OpenAs("intents/1", seal.KindIntent, bad); err == nil {
				t.Errorf("sealing %d: a flip of byte %d of %d is not found", s, i, len(p))
			}
			if i >= len(p)-32 {
				continue
			}
			if _, err := k.OpenAs("intents/1", seal.KindIntent, rehash(bad)); err == nil {
				t.Errorf("sealing %d: a flip of byte %d of %d with a new hash is not found", s, i, len(p))
			}
		}
		for n := range p {
			_, err := seal.Parse(p[:n])
			wantErr(t, fmt.Sprintf("cut to %d bytes", n), err, chunk.ErrCorrupt)
			if n >= 32 {
				if _, err := seal.Parse(rehash(p[:n])); err == nil {
					t.Errorf("cut to %d bytes, with a hash that fits: no error", n)
				}
			}
		}
		if _, err := seal.Parse(append(bytes.Clone(p), 0)); err == nil {
			t.Error("a byte behind the object is not found")
		}
	}
}

func TestParseRefuses(t *testing.T) {
	p := mustSeal(t, testKeys(t), "x", seal.KindMark, seal.ForList, []byte("body"))
	tests := []struct {
		name string
		do   func([]byte)
		want error
	}{
		{"newer version", func(p []byte) { p[8] = 2 }, seal.ErrVersion},
		{"much newer version", func(p []byte) { p[9] = 255 }, seal.ErrVersion},
		{"version 0", func(p []byte) { p[8] = 0 }, seal.ErrVersion},
		{"unknown sealing", func(p []byte) { p[10] = 3 }, seal.ErrVersion},
		{"unknown compression", func(p []byte) { p[11] = 2 }, seal.ErrVersion},
		{"magic", func(p []byte) { p[0] = 'C' }, chunk.ErrCorrupt},
		{"wrapped key too long", func(p []byte) { p[33] = 255 }, chunk.ErrCorrupt},
		{"body too short", func(p []byte) { p[34]-- }, chunk.ErrCorrupt},
		{"body of 4 GiB", func(p []byte) { binary.LittleEndian.PutUint32(p[34:], 1<<32-1) }, chunk.ErrCorrupt},
	}
	for _, tt := range tests {
		bad := bytes.Clone(p)
		tt.do(bad)
		_, err := seal.Parse(rehash(bad))
		wantErr(t, tt.name, err, tt.want)
	}
	for _, junk := range [][]byte{nil, []byte("cutbank"), []byte("cutbankM\x01\x00"), make([]byte, 1000)} {
		_, err := seal.Parse(junk)
		wantErr(t, fmt.Sprintf("%.20q", junk), err, chunk.ErrCorrupt)
	}
}

// TestWriteOnly is about a ring without private keys and without the owner's
// seed.
func TestWriteOnly(t *testing.T) {
	owner, w := testKeys(t), open(t, writeOnly(t))
	body := []byte("what it says")
	list := mustSeal(t, owner, "index/1", seal.KindSegment, seal.ForList, body)
	if o, err := w.OpenAs("index/1", seal.KindSegment, list); err != nil || !bytes.Equal(o.Body, body) {
		t.Errorf("an object that lists chunks: %v", err)
	}
	record := mustSeal(t, owner, "snapshots/1", seal.KindSnapshot, seal.ForEpoch, body)
	_, err := w.OpenAs("snapshots/1", seal.KindSnapshot, record)
	wantErr(t, "a record", err, seal.ErrNoKey)

	// It can write what it cannot read.
	own := mustSeal(t, w, "snapshots/2", seal.KindSnapshot, seal.ForEpoch, body)
	_, err = w.OpenAs("snapshots/2", seal.KindSnapshot, own)
	wantErr(t, "a record of its own", err, seal.ErrNoKey)
	_, err = owner.OpenAs("snapshots/2", seal.KindSnapshot, own)
	wantErr(t, "a record of a stranger", err, seal.ErrNoKey)
	owner.Trust(ed25519.NewKeyFromSeed(w.Ring().Write).Public().(ed25519.PublicKey))
	if o, err := owner.OpenAs("snapshots/2", seal.KindSnapshot, own); err != nil || o.Writer != w.Self() || !bytes.Equal(o.Body, body) {
		t.Errorf("a record of a trusted writer: %v", err)
	}

	_, wrapped, err := owner.Wrap("packs/1", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Unwrap("packs/1", 2, wrapped)
	wantErr(t, "the key of a pack's frames", err, seal.ErrNoKey)

	r := writeOnly(t)
	r.Write = nil
	_, err = open(t, r).Seal("index/2", seal.KindSegment, seal.ForList, body, testRandom(1))
	wantErr(t, "sealing without a seed", err, seal.ErrNoKey)
}

func TestSealNeedsRandomness(t *testing.T) {
	k := testKeys(t)
	for _, s := range []seal.Sealing{seal.ForList, seal.ForEpoch} {
		if _, err := k.Seal("x", seal.KindMark, s, nil, strings.NewReader("short")); err == nil {
			t.Errorf("sealing %d went on without randomness", s)
		}
	}
	if _, err := k.SealList("x", nil, strings.NewReader("short")); err == nil {
		t.Error("SealList went on without randomness")
	}
}

func TestSealClear(t *testing.T) {
	p := seal.SealClear(seal.KindKey, []byte("wrapped ring"))
	o, err := seal.Parse(p)
	if err != nil || o.Kind != seal.KindKey || o.Writer != (seal.WriterID{}) || string(o.Body) != "wrapped ring" {
		t.Fatalf("%+v, %v", o, err)
	}
	wantErr(t, "an unsigned object where a signed one should be", testKeys(t).Open("keys/1", o), seal.ErrNoKey)
}

// TestFrozenObjects opens objects that were sealed when version 1 was made. The
// files never change.
func TestFrozenObjects(t *testing.T) {
	k := testKeys(t)
	body := []byte(strings.Repeat(`{"v":1,"text":"cutbank"}`, 10))
	for _, tt := range []struct {
		file    string
		kind    seal.Kind
		sealing seal.Sealing
	}{
		{"v1-object-clear.bin", seal.KindMark, seal.Clear},
		{"v1-object-list.bin", seal.KindSegment, seal.ForList},
		{"v1-object-epoch.bin", seal.KindSnapshot, seal.ForEpoch},
	} {
		p := frozen(t, tt.file, func() []byte { return mustSeal(t, k, "frozen/1", tt.kind, tt.sealing, body) })
		o, err := k.OpenAs("frozen/1", tt.kind, p)
		if err != nil || o.Sealing != tt.sealing || !bytes.Equal(o.Body, body) {
			t.Errorf("%s: %v", tt.file, err)
		}
	}
	p := frozen(t, "v1-object-unsigned.bin", func() []byte { return seal.SealClear(seal.KindKey, body) })
	if o, err := seal.Parse(p); err != nil || !bytes.Equal(o.Body, body) {
		t.Errorf("unsigned: %v", err)
	}
	if !bytes.Equal(p, seal.SealClear(seal.KindKey, body)) {
		t.Error("an unsigned object is written otherwise than it was")
	}
	if !bytes.Equal(frozen(t, "v1-object-clear.bin", nil), mustSeal(t, k, "frozen/1", seal.KindMark, seal.Clear, body)) {
		t.Error("a clear object is written otherwise than it was")
	}
	list := frozen(t, "v1-list.bin", func() []byte {
		p, err := k.SealList("frozen/2", body, testRandom(2))
		if err != nil {
			t.Fatal(err)
		}
		return p
	})
	if got, err := k.OpenList("frozen/2", list); err != nil || !bytes.Equal(got, body) {
		t.Errorf("list: %v", err)
	}
	wrapped := frozen(t, "v1-wrapped.bin", func() []byte {
		_, p, err := k.Wrap("frozen/3", bytes.Repeat([]byte{3}, 32))
		if err != nil {
			t.Fatal(err)
		}
		return p
	})
	if key, err := k.Unwrap("frozen/3", 2, wrapped); err != nil || !bytes.Equal(key, bytes.Repeat([]byte{3}, 32)) {
		t.Errorf("wrapped key: %v", err)
	}
}
