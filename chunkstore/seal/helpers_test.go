package seal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// frozen returns a file of testdata. These files are what version 1 of the
// format is: once committed, none of them ever changes. A new one is made by
// running its test with CUTBANK_FREEZE=1; what is there is never overwritten.
func frozen(tb testing.TB, name string, fresh func() []byte) []byte {
	tb.Helper()
	path := filepath.Join("testdata", name)
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("CUTBANK_FREEZE") == "1" {
		p = fresh()
		err = os.WriteFile(path, p, 0o644)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// testRandom is bytes from a seed, as good as random for tests.
func testRandom(seed uint64) *rand.ChaCha8 {
	var s [32]byte
	for i := range 8 {
		s[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(s)
}

// testRing is a whole ring of two epochs, the one of all frozen samples. Its
// file never changes.
func testRing(tb testing.TB) *seal.Ring {
	tb.Helper()
	p := frozen(tb, "v1-ring.json", func() []byte {
		r, err := seal.NewRing("00112233445566778899aabbccddeeff", testRandom(1))
		if err == nil {
			err = r.AddEpoch()
		}
		if err != nil {
			tb.Fatal(err)
		}
		p, err := json.MarshalIndent(r, "", "\t")
		if err != nil {
			tb.Fatal(err)
		}
		return append(p, '\n')
	})
	r := &seal.Ring{}
	if err := json.Unmarshal(p, r); err != nil {
		tb.Fatal(err)
	}
	return r
}

func open(tb testing.TB, r *seal.Ring) *seal.Keys {
	tb.Helper()
	k, err := r.Open()
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func testKeys(tb testing.TB) *seal.Keys { return open(tb, testRing(tb)) }

// writeOnly is the ring of a node that may write but not read.
func writeOnly(tb testing.TB) *seal.Ring {
	r := testRing(tb)
	r.Seed, r.Write = nil, bytes.Repeat([]byte{7}, 32)
	for i := range r.Epochs {
		r.Epochs[i].Private = nil
	}
	return r
}

// rehash makes the closing hash of an object fit again.
func rehash(p []byte) []byte {
	d := chunk.Digest(p[:len(p)-32])
	return append(bytes.Clone(p[:len(p)-32]), d[:]...)
}

func wantErr(tb testing.TB, what string, err, want error) {
	tb.Helper()
	if !errors.Is(err, want) || err == nil {
		tb.Errorf("%s: error %v, want %v", what, err, want)
	}
}
