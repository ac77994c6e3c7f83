package pack_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// checkFrames reads all chunks of a pack by their locations.
func checkFrames(t *testing.T, k *seal.Keys, x *built, tr *pack.Trailer) {
	t.Helper()
	key, err := pack.FrameKey(k, tr.Name, tr.Epoch, tr.Wrapped)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for _, parts := range x.chunks {
		all = append(all, parts...)
	}
	n := 0
	tr.Locations(func(id chunk.ID, loc pack.Location) {
		want := all[n]
		n++
		stored := bytes.Clone(x.bytes[loc.Off : loc.Off+loc.Stored])
		if l := binary.LittleEndian.Uint32(x.bytes[loc.Off-4:]); l != loc.Stored {
			t.Errorf("chunk %d: the length in front of its frame says %d, its location %d", n, l, loc.Stored)
		}
		plain, err := key.Open(nil, loc.Frame, stored)
		if err != nil {
			t.Fatalf("chunk %d: %v", n, err)
		}
		if len(plain) != int(loc.Plain) || !bytes.Equal(plain[loc.Start:loc.Start+loc.Len], want) || id != k.Data.Sum(want) || loc.Pack != tr.Name {
			t.Errorf("chunk %d is not where its location says", n)
		}
	})
	if n != len(all) {
		t.Errorf("%d locations, want %d", n, len(all))
	}
}

func TestRoundTrip(t *testing.T) {
	k := testKeys(t)
	many := make([]int, 1000)
	for i := range many {
		many[i] = 1 + i%300
	}
	for name, frames := range map[string][][]int{
		"empty": nil, "one byte": {{1}}, "varint borders": {{127, 128, 129}, {16383, 16384, 16385}},
		"many chunks": {many, many}, "trailer beyond the first read": {many, many[:999], many[:998], many},
	} {
		x := build(t, k, pack.Data, frames...)
		if err := pack.Check(x.bytes); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		h, n, err := pack.ParseHeader(x.bytes)
		if err != nil || n > pack.MaxHeader || !reflect.DeepEqual(*h, x.trailer.Header) {
			t.Errorf("%s: header %+v of %d bytes, %v", name, h, n, err)
		}
		tr, err := x.read(k)
		if err != nil || !reflect.DeepEqual(tr, x.trailer) {
			t.Errorf("%s: the trailer comes back otherwise, %v", name, err)
			continue
		}
		checkFrames(t, k, x, tr)
	}
}

func TestBuilderUsesItsRoom(t *testing.T) {
	room := make([]byte, 0, 1<<16)
	b, err := pack.NewBuilder(testKeys(t), pack.Meta, [16]byte{}, testRandom(1), room)
	if err != nil {
		t.Fatal(err)
	}
	p, tr, err := b.Finish(testKeys(t), testRandom(2))
	if err != nil || &p[0] != &room[:1][0] {
		t.Errorf("a pack of %d bytes was not built in the room of %d: %v", len(p), cap(room), err)
	}
	if tr.Kind != pack.Meta {
		t.Errorf("kind %s", tr.Kind)
	}
	for n := range 48 {
		if _, err := pack.NewBuilder(testKeys(t), pack.Data, [16]byte{}, strings.NewReader(strings.Repeat("x", n)), nil); err == nil {
			t.Errorf("%d random bytes were enough", n)
		}
	}
}

// TestSizeAtVarintBorders makes packs of every size around those at which the
// size itself takes one byte more in the trailer.
func TestSizeAtVarintBorders(t *testing.T) {
	k := testKeys(t)
	small := len(build(t, k, pack.Data, []int{1}).bytes)
	for _, border := range []int{1 << 14, 1 << 21} {
		seen := map[int]bool{}
		for n := border - small - 40; n < border-small+40; n++ {
			x := build(t, k, pack.Data, []int{n})
			seen[len(x.bytes)] = true
			if _, err := x.read(k); err != nil {
				t.Fatalf("a pack of %d bytes: %v", len(x.bytes), err)
			}
		}
		below, above := false, false
		for size := range seen {
			below, above = below || size < border, above || size >= border
		}
		if !below || !above {
			t.Errorf("the sizes do not lie around %d", border)
		}
	}
}

// TestEveryFlippedByte flips a bit of each byte of a small pack. Check finds
// each without a key. With a closing hash that fits again, ReadTrailer finds
// those in header and trailer, and opening the frames finds the others.
func TestEveryFlippedByte(t *testing.T) {
	k := testKeys(t)
	x := build(t, k, pack.Data, []int{40, 50}, []int{60})
	good := x.bytes
	end := x.trailer.Frames[1].Off + x.trailer.Frames[1].Stored
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		wantErr(t, fmt.Sprintf("flip of byte %d", i), pack.Check(bad), chunk.ErrCorrupt)
		if i >= len(good)-32 {
			continue
		}
		x.bytes = rehash(bad)
		if err := pack.Check(x.bytes); err != nil {
			t.Fatal(err)
		}
		tr, err := x.read(k)
		if inFrames := i >= int(x.trailer.Frames[0].Off)-4 && i < int(end); inFrames != (err == nil) {
			t.Errorf("flip of byte %d of %d, frames %t: ReadTrailer says %v", i, len(good), inFrames, err)
			continue
		}
		if err != nil {
			continue
		}
		if lost := framesLost(t, k, x, tr); lost != 1 && !inLength(x.trailer, i) {
			t.Errorf("flip of byte %d: %d frames do not open", i, lost)
		}
	}
}

// inLength tells whether byte i is in the length before a frame, which no
// reader needs.
func inLength(tr *pack.Trailer, i int) bool {
	for _, f := range tr.Frames {
		if i >= int(f.Off)-4 && i < int(f.Off) {
			return true
		}
	}
	return false
}

func framesLost(t *testing.T, k *seal.Keys, x *built, tr *pack.Trailer) int {
	t.Helper()
	key, err := pack.FrameKey(k, tr.Name, tr.Epoch, tr.Wrapped)
	if err != nil {
		t.Fatal(err)
	}
	lost := 0
	for i, f := range tr.Frames {
		if _, err := key.Open(nil, uint32(i), bytes.Clone(x.bytes[f.Off:f.Off+f.Stored])); errors.Is(err, chunk.ErrCorrupt) {
			lost++
		}
	}
	return lost
}

func TestTruncated(t *testing.T) {
	k := testKeys(t)
	x := build(t, k, pack.Data, []int{40, 50}, []int{60})
	good := x.bytes
	for n := range good {
		wantErr(t, fmt.Sprintf("cut to %d bytes", n), pack.Check(good[:n]), chunk.ErrCorrupt)
		x.bytes = good[:n]
		_, err := x.read(k)
		wantErr(t, fmt.Sprintf("trailer of a pack cut to %d bytes", n), err, chunk.ErrCorrupt)
		if n > 32 {
			x.bytes = rehash(good[:n])
			_, err = x.read(k)
			wantErr(t, fmt.Sprintf("cut to %d bytes, with a hash that fits", n), err, chunk.ErrCorrupt)
		}
	}
	// The size may come from a listing, and the pack be shorter by then.
	_, err := pack.ReadTrailer(k, x.trailer.Name, int64(len(good)), reader(good[:100]))
	if err == nil {
		t.Error("no error from a read that fails")
	}
	for _, size := range []int64{-1, 0, 85, pack.MaxSize + 1, 1 << 62} {
		_, err := pack.ReadTrailer(k, x.trailer.Name, size, func(off, n int64) ([]byte, error) {
			t.Errorf("size %d: %d bytes were read", size, n)
			return nil, errors.New("no")
		})
		wantErr(t, fmt.Sprintf("size %d", size), err, chunk.ErrCorrupt)
	}
}

func TestAnotherNameOrWriter(t *testing.T) {
	k := testKeys(t)
	x := build(t, k, pack.Data, []int{10})
	other := x.trailer.Name
	other[15]++
	_, err := pack.ReadTrailer(k, other, int64(len(x.bytes)), reader(x.bytes))
	wantErr(t, "under another name", err, chunk.ErrCorrupt)

	r := testRing(t)
	r.Write = bytes.Repeat([]byte{5}, 32)
	x = build(t, open(t, r), pack.Data, []int{10})
	_, err = x.read(k)
	wantErr(t, "of a stranger", err, seal.ErrNoKey)
}

// TestWriteOnly is about a node that has no private keys: it makes packs, reads
// what they list, and opens no frame.
func TestWriteOnly(t *testing.T) {
	r := testRing(t)
	for i := range r.Epochs {
		r.Epochs[i].Private = nil
	}
	w := open(t, r)
	x := build(t, w, pack.Data, []int{10, 20})
	tr, err := x.read(w)
	if err != nil {
		t.Fatal(err)
	}
	_, err = pack.FrameKey(w, tr.Name, tr.Epoch, tr.Wrapped)
	wantErr(t, "the frames", err, seal.ErrNoKey)
	checkFrames(t, testKeys(t), x, tr)
}

func TestNames(t *testing.T) {
	n := pack.Name{0xab, 1}
	if n.Object() != "packs/ab/ab010000000000000000000000000000" {
		t.Errorf("object %q", n.Object())
	}
	if got, ok := pack.ParseObject(n.Object()); !ok || got != n {
		t.Errorf("parsed as %s, %t", got, ok)
	}
	for _, bad := range []string{
		"", "packs/ab", "packs/ac/ab010000000000000000000000000000", "packs/AB/AB010000000000000000000000000000",
		"packs/ab/ab01000000000000000000000000000g", "packs/ab/ab0100000000000000000000000000000", "index/ab/ab010000000000000000000000000000",
	} {
		if n, ok := pack.ParseObject(bad); ok {
			t.Errorf("%q is the pack %s", bad, n)
		}
	}
	for k, want := range map[pack.Kind]string{pack.Data: "data", pack.Meta: "meta", 7: "kind(7)"} {
		if k.String() != want {
			t.Errorf("kind %d is %q", uint8(k), k)
		}
	}
}

// TestFrozenPack reads a pack that was written when version 1 was made. Its
// file never changes.
func TestFrozenPack(t *testing.T) {
	k := testKeys(t)
	frames := [][]int{{100, 1, 3000}, {200}}
	x := build(t, k, pack.Data, frames...) // for the chunks, which are from a seed
	x.bytes = frozen(t, "v1-pack.bin", func() []byte { return x.bytes })
	if err := pack.Check(x.bytes); err != nil {
		t.Fatal(err)
	}
	tr, err := x.read(k)
	if err != nil {
		t.Fatal(err)
	}
	if tr.Epoch != 2 || tr.Kind != pack.Data || tr.Writer != k.Owner() || tr.Session != [16]byte{1, 2, 3} || len(tr.Frames) != 2 {
		t.Errorf("%+v", tr)
	}
	checkFrames(t, k, x, tr)
}
