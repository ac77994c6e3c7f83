package repo

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func sampleSeed() []byte { return bytes.Repeat([]byte{0x5e}, 32) }

// TestFrozenCredential reads credentials that were made when the format was. The
// files never change.
func TestFrozenCredential(t *testing.T) {
	full := frozenRing(t)
	for file, want := range map[string]*seal.Ring{"v1-credential-writer.pem": writeOnlyRing(full, sampleSeed()), "v1-credential-owner.pem": full} {
		password := ""
		if want == full {
			password = "correct horse \u00e9"
		}
		p := frozen(t, file, func() []byte {
			p, err := newCredential(want, password, "rack 7", sampleTime(1), rand.NewChaCha8([32]byte{3}))
			if err != nil {
				t.Fatal(err)
			}
			return p
		})
		got, err := openCredential(p, func() (string, error) { return password, nil })
		if err != nil || !reflect.DeepEqual(got.ring, want) || got.writes != (want != full) {
			t.Errorf("%s: another ring: %v", file, err)
		}
	}
}

// TestWriteOnlyRing holds nothing that opens contents, not even what a newer
// program added.
func TestWriteOnlyRing(t *testing.T) {
	full := *frozenRing(t)
	full.Extra = map[string]json.RawMessage{"future": json.RawMessage(`"a secret"`)}
	full.Epochs = append([]seal.Epoch(nil), full.Epochs...)
	full.Epochs[0].Extra = full.Extra
	if len(full.Epochs[0].Private) == 0 || len(full.Seed) == 0 {
		t.Fatal("the sample is not a whole ring")
	}
	ring := writeOnlyRing(&full, sampleSeed())
	p, err := json.Marshal(ring)
	if err != nil {
		t.Fatal(err)
	}
	for what, secret := range map[string][]byte{"the owner's seed": full.Seed, "an epoch's private key": full.Epochs[0].Private} {
		text, err := json.Marshal(secret)
		if err != nil || bytes.Contains(p, text) {
			t.Errorf("it holds %s", what)
		}
	}
	if bytes.Contains(p, []byte("a secret")) {
		t.Error("it holds what a newer program added")
	}
	if !writeOnly(ring) || writeOnly(&full) {
		t.Errorf("write-only: %v and %v", writeOnly(ring), writeOnly(&full))
	}
}

func TestCredentials(t *testing.T) {
	b := backend.NewMem()
	owner := testInit(t, b)
	_, cred := addNode(t, owner, NewWriter{Names: []string{"*"}})
	if _, err := openAs(t, b, cred, start); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(cred)
	rotten := bytes.Clone(block.Bytes)
	rotten[len(rotten)/2] ^= 1
	secret := "secret"
	locked, err := newCredential(owner.SecretKeys().Ring(), secret, "", start, random)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := backend.NewMem()
	testInit(t, elsewhere)
	like := backend.NewMem()
	in := testParams(t)
	in.Like = owner
	sibling, err := Init(t.Context(), like, in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer sibling.Close()
	for what, tt := range map[string]struct {
		b    backend.Backend
		cred []byte
		want error
	}{
		"empty":                {b, []byte{}, ErrKey},
		"no credential":        {b, []byte("hello\n"), ErrKey},
		"another PEM":          {b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: block.Bytes}), ErrKey},
		"huge":                 {b, bytes.Repeat([]byte("x"), maxCredential+1), ErrKey},
		"rot":                  {b, pem.EncodeToMemory(&pem.Block{Type: credentialType, Bytes: rotten}), chunk.ErrCorrupt},
		"no key":               {b, pem.EncodeToMemory(&pem.Block{Type: credentialType, Bytes: get(t, b, "config/1")}), chunk.ErrCorrupt},
		"nobody to ask":        {b, locked, ErrKey},
		"another repository":   {elsewhere, cred, ErrKey},
		"one of equal secrets": {like, cred, ErrKey},
		"no repository":        {backend.NewMem(), cred, ErrNoRepo},
	} {
		if _, err := openAs(t, tt.b, tt.cred, start); !errors.Is(err, tt.want) || tt.want == ErrKey && errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("%s: %v, want %v", what, err, tt.want)
		}
	}
	opt := testOptions(t)
	opt.Credential = locked
	for password, want := range map[string]error{secret: nil, "other": ErrKey} {
		opt.Password = func() (string, error) { return password, nil }
		r, err := Open(t.Context(), b, opt)
		if !errors.Is(err, want) {
			t.Errorf("password %q: %v", password, err)
		}
		if err == nil {
			if err := r.ownerOnly("x"); err != nil {
				t.Error(err)
			}
			r.Close()
		}
	}
	// A damaged config is damage, whatever it was opened with.
	p := get(t, b, "config/1")
	p[len(p)-1] ^= 1
	replace(t, b, "config/1", p)
	if _, err := openAs(t, b, cred, start); !errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, ErrKey) {
		t.Errorf("damaged config: %v", err)
	}
	if strings.Contains(string(cred), "PRIVATE") {
		t.Error("it looks like another kind of key")
	}
}
