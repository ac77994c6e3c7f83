package parity_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// TestEveryFlippedByte flips a bit of each byte of a small pack, and beside it
// a bit of each byte of its parity object, in another order: the pack comes
// back each time.
func TestEveryFlippedByte(t *testing.T) {
	p := testPack(1, 3000)
	o := testObject(t, p, 2)
	step := coprime(len(o))
	for i := range max(len(p), len(o)) {
		badPack, badParity := flip(p, i%len(p)), flip(o, i*step%len(o))
		x, err := parity.Open(testName, badParity)
		if err != nil {
			t.Fatalf("parity with a flip of byte %d of %d: %v", i*step%len(o), len(o), err)
		}
		if x.Whole() {
			t.Fatalf("flip of byte %d of the parity is not noticed", i*step%len(o))
		}
		got, rep, err := x.Rebuild(badPack)
		if err != nil || !bytes.Equal(got, p) {
			t.Fatalf("flips of byte %d of the pack and %d of its parity: %v, %+v", i%len(p), i*step%len(o), err, rep)
		}
		if rep.DataDamaged < 1 || rep.DataDamaged > 2 {
			t.Errorf("flip of byte %d: %+v", i%len(p), rep)
		}
	}
}

// TestBursts loses runs of bytes: as long as the parity asked for at any place,
// but for one shard.
func TestBursts(t *testing.T) {
	seed := uint64(7)
	rnd := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	for _, c := range []struct {
		size    int
		percent float64
	}{{200_000, 2}, {1 << 20, 2}, {3<<20 + 17, 1}, {3<<20 + 17, 5}, {9<<20 + 1, 2.5}, {1 << 20, 100}, {70_000, 33}} {
		p := testPack(2, c.size)
		x := mustOpen(t, testObject(t, p, c.percent))
		_, rep, _ := x.Rebuild(nil)
		n := int(float64(c.size)*c.percent/100) - rep.Shard
		if n < rep.Shard {
			n = rep.Shard
		}
		for range 12 {
			bad := bytes.Clone(p)
			at := rnd.IntN(c.size - min(n, c.size-1))
			clear(bad[at:min(at+n, c.size)])
			wantRebuilt(t, fmt.Sprintf("%d bytes lost at %d of %d with %g%%", n, at, c.size, c.percent), x, bad, p)
		}
		// Cut off, and grown.
		wantRebuilt(t, fmt.Sprintf("%d bytes cut off %d with %g%%", n, c.size, c.percent), x, p[:c.size-n], p)
		wantRebuilt(t, "grown", x, append(bytes.Clone(p), 1, 2, 3), p)
	}
}

// TestScatteredFlips flips many bits, in the pack and in its parity.
func TestScatteredFlips(t *testing.T) {
	seed := uint64(11)
	rnd := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	p := testPack(3, 4<<20)
	o := testObject(t, p, 5)
	for round := range 10 {
		badPack, badParity := bytes.Clone(p), bytes.Clone(o)
		for i := range 12 {
			badPack[rnd.IntN(len(p))] ^= 1 << rnd.IntN(8)
			if i < 3 {
				badParity[rnd.IntN(len(o))] ^= 1 << rnd.IntN(8)
			}
		}
		wantRebuilt(t, fmt.Sprintf("round %d", round), mustOpen(t, badParity), badPack, p)
	}
}

// TestDamagedParity loses parts of the parity object beside one byte of the
// pack.
func TestDamagedParity(t *testing.T) {
	p := testPack(4, 1<<20)
	o := testObject(t, p, 2)
	bad := flip(p, 500_000)
	for what, q := range map[string][]byte{
		"whole":                  o,
		"no envelope":            append(append(make([]byte, 38), o[38:len(o)-96]...), make([]byte, 96)...),
		"first 4 KiB gone":       append(make([]byte, 4096), o[4096:]...),
		"last 4 KiB gone":        append(bytes.Clone(o[:len(o)-4096]), make([]byte, 4096)...),
		"last 4 KiB cut":         o[:len(o)-4096],
		"second table cut":       o[:len(o)-96-96-100],
		"grown":                  append(bytes.Clone(o), 1, 2, 3),
		"a sector of each table": erase(erase(o, 200, 2000), len(o)-200-2000, 2000),
	} {
		x, err := parity.Open(testName, q)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if x.Whole() != (what == "whole") {
			t.Errorf("%s: whole: %v", what, x.Whole())
		}
		if x.Pack() != testName || x.Size() != int64(len(p)) {
			t.Errorf("%s: parity of %s of %d bytes", what, x.Pack(), x.Size())
		}
		wantRebuilt(t, what, x, bad, p)
	}
	for what, q := range map[string][]byte{
		"empty": nil, "one byte": {1}, "both heads gone": erase(erase(o, 0, 200), len(o)-200, 200), "cut in the first table": o[:1000],
		"zeros": make([]byte, len(o)),
	} {
		if x, err := parity.Open(testName, q); !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("%s: %v, %v", what, x, err)
		}
	}
	if _, err := parity.Open(pack.Name{9}, o); !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), testName.String()) {
		t.Errorf("parity of another pack: %v", err)
	}
}

// TestTooMuch: what parity cannot rebuild is refused and counted, and one shard
// less is rebuilt.
func TestTooMuch(t *testing.T) {
	p := testPack(5, 2<<20)
	o := testObject(t, p, 2)
	x := mustOpen(t, o)
	_, rep, err := x.Rebuild(make([]byte, len(p)))
	if !errors.Is(err, chunk.ErrCorrupt) || rep.Lost != rep.Data || rep.DataDamaged != rep.Data {
		t.Errorf("a pack of zeros: %v, %+v", err, rep)
	}
	n := rep.Parity * rep.Shard
	bad := erase(p, 0, n)
	wantRebuilt(t, "as many shards as there is parity", x, bad, p)
	if _, rep, err = x.Rebuild(flip(bad, n)); !errors.Is(err, chunk.ErrCorrupt) || rep.Lost == 0 || rep.DataDamaged != rep.Parity+1 {
		t.Errorf("one shard more: %v, %+v", err, rep)
	}
	if _, _, err := x.Rebuild(nil); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("no pack at all: %v", err)
	}
	// Parity that fits itself but is of other bytes proves nothing.
	forged := append(bytes.Clone(p[:len(p)-32]), make([]byte, 32)...)
	got, _, err := mustOpen(t, testObject(t, forged, 2)).Rebuild(flip(forged, 9))
	if !errors.Is(err, chunk.ErrCorrupt) || got != nil {
		t.Errorf("parity of what is no pack: %v", err)
	}
}

func TestSizes(t *testing.T) {
	for _, size := range []int{86, 511, 512, 513, 1000, 5000, 65_536, 1 << 20, 8<<20 + 1, 32 << 20} {
		p := testPack(6, size)
		for _, percent := range []float64{1, 1.5, 2, 3, 5, 10, 25, 50, 99, 100} {
			body, err := parity.Compute(testName, p, percent)
			if err != nil {
				t.Fatalf("%d bytes, %g%%: %v", size, percent, err)
			}
			o := sealed(t, body)
			if want, err := parity.Size(int64(size), percent); err != nil || want != int64(len(o)) {
				t.Errorf("%d bytes, %g%%: an object of %d bytes, %d was said, %v", size, percent, len(o), want, err)
			}
			x := mustOpen(t, o)
			_, rep, _ := x.Rebuild(nil)
			if share := float64(rep.Parity) / float64(rep.Data); share*100 < percent-1e-9 {
				t.Errorf("%d bytes: parity of %.3g%%, want %g%%", size, share*100, percent)
			}
			// More for the hashes, and for what does not divide.
			if cost := 100 * float64(len(o)) / float64(size); size >= 1<<20 && cost > percent*1.1+1.5 {
				t.Errorf("%d bytes: an object of %.3g%% for %g%%", size, cost, percent)
			}
			wantRebuilt(t, fmt.Sprintf("%d bytes, %g%%", size, percent), x, flip(p, size/2), p)
			if size > 8<<20 {
				break
			}
		}
	}
	for _, c := range []struct {
		size    int64
		percent float64
	}{{1000, 0.9}, {1000, 101}, {1000, 0}, {1000, -2}, {31, 2}, {pack.MaxSize + 1, 2}} {
		if _, err := parity.Size(c.size, c.percent); err == nil {
			t.Errorf("%d bytes with %g%%: no error", c.size, c.percent)
		}
	}
}

// TestUndamaged: a pack without damage comes back as it is, whatever its parity
// looks like.
func TestUndamaged(t *testing.T) {
	p := testPack(7, 100_000)
	x := mustOpen(t, erase(testObject(t, p, 2), 1000, 3000))
	got, rep, err := x.Rebuild(p)
	if err != nil || &got[0] != &p[0] || rep.DataDamaged != 0 {
		t.Errorf("%v, %+v", err, rep)
	}
}

func TestVersions(t *testing.T) {
	p := testPack(8, 5000)
	body, err := parity.Compute(testName, p, 2)
	if err != nil {
		t.Fatal(err)
	}
	k := testKeys(t)
	later := bytes.Clone(body)
	for _, at := range []int{0, len(later) - 96} {
		later[at] = 2
		d := chunk.Digest(later[at : at+64])
		copy(later[at+64:], d[:])
	}
	listed, err := k.Seal(parity.Object(testName), seal.KindParity, seal.ForList, body, testRandom(1))
	if err != nil {
		t.Fatal(err)
	}
	ledger, err := k.Seal(parity.Object(testName), seal.KindLedger, seal.Clear, body, testRandom(1))
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		p    []byte
		want error
	}{"a newer body": {sealed(t, later), seal.ErrVersion}, "sealed": {listed, seal.ErrVersion}, "another kind": {ledger, chunk.ErrCorrupt}} {
		if _, err := parity.Open(testName, c.p); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
}

// TestCode computes parity by the formula in the package's doc.
func TestCode(t *testing.T) {
	p := testPack(9, 1<<20-100)
	body, err := parity.Compute(testName, p, 3)
	if err != nil {
		t.Fatal(err)
	}
	k, m := int(body[1]), int(body[2])
	shard := int(body[4]) | int(body[5])<<8 | int(body[6])<<16
	data := (len(p) + shard - 1) / shard
	stripes := (data + k - 1) / k
	if stripes < 2 || m < 2 {
		t.Fatalf("%d stripes of %d and %d shards test little", stripes, k, m)
	}
	padded := append(bytes.Clone(p), make([]byte, stripes*k*shard-len(p))...)
	parityAt := 96 + (data+stripes*m)*16
	for s := range stripes {
		for r := range m {
			for b := 0; b < shard; b += 101 {
				want := byte(0)
				for c := range k {
					want ^= mul(inverse(byte(k+r)^byte(c)), padded[(s+c*stripes)*shard+b])
				}
				if got := body[parityAt+(s+r*stripes)*shard+b]; got != want {
					t.Fatalf("stripe %d, parity %d, byte %d: %d, want %d", s, r, b, got, want)
				}
			}
		}
	}
}

func mul(a, b byte) byte {
	var p int
	for x, y := int(a), int(b); y > 0; y >>= 1 {
		if y&1 == 1 {
			p ^= x
		}
		if x <<= 1; x > 255 {
			x ^= 0x11d
		}
	}
	return byte(p)
}

func inverse(a byte) byte {
	for b := range 256 {
		if mul(a, byte(b)) == 1 {
			return byte(b)
		}
	}
	return 0
}

func TestNames(t *testing.T) {
	if got, ok := parity.ParseObject(parity.Object(testName)); !ok || got != testName {
		t.Errorf("%s: %s, %v", parity.Object(testName), got, ok)
	}
	for _, bad := range []string{"", "parity/", "parity/00", "packs/ab/abababababababababababababababab", "parity/ABababababababababababababababab", "parity/xbababababababababababababababab0"} {
		if n, ok := parity.ParseObject(bad); ok {
			t.Errorf("%q is the parity of %s", bad, n)
		}
	}
}

// TestFrozen uses a parity object that was written when it was specified, of
// the frozen pack. Neither file ever changes.
func TestFrozen(t *testing.T) {
	p := frozenPack(t)
	name := frozenName(t, p)
	k := frozenKeys(t)
	o := frozen(t, "v1-parity.bin", func() []byte {
		body, err := parity.Compute(name, p, 5)
		if err != nil {
			t.Fatal(err)
		}
		o, err := k.Seal(parity.Object(name), seal.KindParity, seal.Clear, body, testRandom(1))
		if err != nil {
			t.Fatal(err)
		}
		return o
	})
	opened, err := k.OpenAs(parity.Object(name), seal.KindParity, o)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := parity.Compute(name, p, 5); err != nil || !bytes.Equal(body, opened.Body) {
		t.Errorf("today's parity is other bytes: %v", err)
	}
	x, err := parity.Open(name, o)
	if err != nil || !x.Whole() {
		t.Fatal(err)
	}
	for i := range p {
		wantRebuilt(t, fmt.Sprintf("flip of byte %d", i), x, flip(p, i), p)
	}
}
