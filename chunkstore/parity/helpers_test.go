package parity_test

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
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

var testName = pack.Name{0xab, 1, 2, 3}

func testRandom(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

// testPack is random bytes with a pack's closing hash: parity looks at nothing
// else of it.
func testPack(seed byte, size int) []byte {
	p := make([]byte, size-32, size)
	testRandom(seed).Read(p)
	d := chunk.Digest(p)
	return append(p, d[:]...)
}

func testObject(tb testing.TB, p []byte, percent float64) []byte {
	tb.Helper()
	body, err := parity.Compute(testName, p, percent)
	if err != nil {
		tb.Fatal(err)
	}
	return sealed(tb, body)
}

func sealed(tb testing.TB, body []byte) []byte {
	tb.Helper()
	o, err := testKeys(tb).Seal(parity.Object(testName), seal.KindParity, seal.Clear, body, testRandom(1))
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

func testKeys(tb testing.TB) *seal.Keys { return frozenKeys(tb) }

func mustOpen(tb testing.TB, o []byte) *parity.Parity {
	tb.Helper()
	x, err := parity.Open(testName, o)
	if err != nil {
		tb.Fatal(err)
	}
	return x
}

func wantRebuilt(tb testing.TB, what string, x *parity.Parity, bad, want []byte) {
	tb.Helper()
	before := chunk.Digest(bad)
	got, rep, err := x.Rebuild(bad)
	if err != nil || !bytes.Equal(got, want) {
		tb.Errorf("%s: %v, %+v", what, err, rep)
	}
	if chunk.Digest(bad) != before {
		tb.Errorf("%s: the damaged bytes were changed", what)
	}
}

func flip(p []byte, i int) []byte {
	q := bytes.Clone(p)
	q[i] ^= 1 << (i % 8)
	return q
}

func erase(p []byte, at, n int) []byte {
	q := bytes.Clone(p)
	clear(q[at : at+n])
	return q
}

// coprime is a step that visits all of n numbers.
func coprime(n int) int {
	for s := n*5/8 | 1; ; s += 2 {
		a, b := n, s
		for b > 0 {
			a, b = b, a%b
		}
		if a == 1 {
			return s
		}
	}
}

// frozen returns a file of testdata. These files are what version 1 of the
// format is: once committed, none of them ever changes. A new one is made by
// running its test with CUTBANK_FREEZE=1; what is there is never overwritten.
func frozen(tb testing.TB, name string, fresh func() []byte) []byte {
	tb.Helper()
	path := filepath.Join("testdata", name)
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("CUTBANK_FREEZE") == "1" {
		p = fresh()
		err = errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, p, 0o644))
	}
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// The frozen pack and the ring that opens it are those of package pack.
const packData = "../../pack/testdata/"

func frozenPack(tb testing.TB) []byte { return frozen(tb, packData+"v1-pack.bin", nil) }

func frozenKeys(tb testing.TB) *seal.Keys {
	tb.Helper()
	r := &seal.Ring{}
	if err := json.Unmarshal(frozen(tb, packData+"v1-ring.json", nil), r); err != nil {
		tb.Fatal(err)
	}
	k, err := r.Open()
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// frozenName is that of the frozen pack: the first random bytes of its seed.
func frozenName(tb testing.TB, p []byte) pack.Name {
	tb.Helper()
	var name pack.Name
	testRandom(1).Read(name[:])
	if _, err := pack.ReadTrailer(frozenKeys(tb), name, int64(len(p)), func(off, n int64) ([]byte, error) { return p[off : off+n], nil }); err != nil {
		tb.Fatal(err)
	}
	return name
}
