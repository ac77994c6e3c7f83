package seal_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

var levels = []seal.Level{seal.Fastest, seal.Default, seal.Better}

func randomBytes(seed uint64, n int) []byte {
	p := make([]byte, n)
	testRandom(seed).Read(p)
	return p
}

func TestFrameRoundTrip(t *testing.T) {
	many := make([][]byte, 3000)
	for i := range many {
		many[i] = randomBytes(uint64(i), 1+i%70)
	}
	key := seal.NewFrameKey(bytes.Repeat([]byte{1}, 32), []byte("pack"))
	for name, chunks := range map[string][][]byte{
		"none": {}, "one": {[]byte("a")}, "two": {[]byte("first"), []byte("second")}, "empty ones": {{}, []byte("x"), {}},
		"many": many, "large": {randomBytes(1, 1<<20), bytes.Repeat([]byte("text "), 1<<18)},
	} {
		plain := seal.AppendFrame(nil, chunks)
		got, err := seal.ParseFrame(plain)
		if err != nil || !slices.EqualFunc(got, chunks, bytes.Equal) {
			t.Errorf("%s: parsed %d chunks of %d, %v", name, len(got), len(chunks), err)
		}
		for _, c := range got {
			if len(c) != cap(c) {
				t.Errorf("%s: appending to a chunk would change its neighbour", name)
			}
		}
		for n, l := range levels {
			packed := seal.Pack(nil, plain, l)
			stored := key.Seal(nil, uint32(n), packed)
			if len(stored) != len(packed)-1+seal.FrameOverhead {
				t.Errorf("%s: overhead of %d bytes", name, len(stored)-len(packed)+1)
			}
			room := make([]byte, 0, len(plain))
			opened, err := key.Open(room, uint32(n), bytes.Clone(stored))
			if err != nil || !bytes.Equal(opened, plain) {
				t.Errorf("%s, level %d: %v", name, l, err)
			} else if &opened[0] != &room[:1][0] {
				t.Errorf("%s, level %d: the room that was given was not used", name, l)
			}
			if opened, err = key.Open(nil, uint32(n), bytes.Clone(stored)); err != nil || !bytes.Equal(opened, plain) {
				t.Errorf("%s, level %d, without room: %v", name, l, err)
			}
			_, err = key.Open(nil, uint32(n)+1, bytes.Clone(stored))
			wantErr(t, "another number", err, chunk.ErrCorrupt)
			_, err = seal.NewFrameKey(bytes.Repeat([]byte{1}, 32), []byte("kcap")).Open(nil, uint32(n), bytes.Clone(stored))
			wantErr(t, "another pack", err, chunk.ErrCorrupt)
			_, err = seal.NewFrameKey(bytes.Repeat([]byte{2}, 32), []byte("pack")).Open(nil, uint32(n), bytes.Clone(stored))
			wantErr(t, "another key", err, chunk.ErrCorrupt)
		}
	}
}

func TestEveryFlippedByteOfAFrame(t *testing.T) {
	key := seal.NewFrameKey(bytes.Repeat([]byte{1}, 32), []byte("pack"))
	for _, plain := range [][]byte{randomBytes(1, 200), bytes.Repeat([]byte("text "), 200)} {
		stored := key.Seal(nil, 5, seal.Pack(nil, plain, seal.Fastest))
		for i := range stored {
			bad := bytes.Clone(stored)
			bad[i] ^= 1 << (i % 8)
			_, err := key.Open(nil, 5, bad)
			wantErr(t, fmt.Sprintf("flip of byte %d", i), err, chunk.ErrCorrupt)
			_, err = key.Open(nil, 5, bytes.Clone(stored[:i]))
			wantErr(t, fmt.Sprintf("cut to %d bytes", i), err, chunk.ErrCorrupt)
		}
	}
	_, err := key.Open(nil, 1, key.Seal(nil, 1, nil))
	wantErr(t, "nothing inside", err, chunk.ErrCorrupt)
	_, err = key.Open(nil, 1, key.Seal(nil, 1, []byte{2, 0}))
	wantErr(t, "unknown compression", err, seal.ErrVersion)
}

func TestParseFrameRefuses(t *testing.T) {
	over := bytes.Repeat([]byte{0xff}, 10) // a varint without end
	for _, tt := range []struct {
		name string
		p    []byte
	}{
		{"nothing", nil},
		{"count without end", over},
		{"more chunks than bytes", []byte{3, 0, 0}},
		{"a billion chunks", binary.AppendUvarint(nil, 1<<30)},
		{"length missing", []byte{1}},
		{"length without end", append([]byte{1}, over...)},
		{"chunk too long", []byte{1, 2, 'a'}},
		{"chunk of 2^63 bytes", append(binary.AppendUvarint([]byte{1}, 1<<63), 'a')},
		{"lengths that overflow together", append(binary.AppendUvarint(binary.AppendUvarint([]byte{2}, 1<<63), 1<<63), 'a')},
		{"bytes left over", []byte{1, 1, 'a', 'b'}},
		{"bytes but no chunk", []byte{0, 'a'}},
	} {
		_, err := seal.ParseFrame(tt.p)
		wantErr(t, tt.name, err, chunk.ErrCorrupt)
	}
}

// TestRawBelowFourPercent packs random bytes with more and more zeros behind
// them, around the gain at which compressing begins to pay.
func TestRawBelowFourPercent(t *testing.T) {
	raw, compressed := 0, 0
	for zeros := range 1000 {
		plain := append(randomBytes(9, 10000), make([]byte, zeros)...)
		z := len(seal.Compress(nil, plain))
		packed := seal.Pack([]byte("scratch"), plain, seal.Fastest)
		if len(plain)-z >= len(plain)/25 {
			compressed++
			if packed[0] != 1 || len(packed) != 1+z {
				t.Fatalf("%d of %d bytes left, but not compressed", z, len(plain))
			}
		} else {
			raw++
			if packed[0] != 0 || !bytes.Equal(packed[1:], plain) {
				t.Fatalf("%d of %d bytes left, but compressed", z, len(plain))
			}
		}
	}
	if raw == 0 || compressed == 0 {
		t.Errorf("%d raw, %d compressed: the border was not met", raw, compressed)
	}
}

func TestDecompress(t *testing.T) {
	plain := bytes.Repeat([]byte("text "), 1000)
	z := seal.Compress(nil, plain)
	if p, err := seal.Decompress([]byte("front "), z, len(plain)); err != nil || string(p) != "front "+string(plain) {
		t.Errorf("%d bytes, %v", len(p), err)
	}
	_, err := seal.Decompress(nil, z, len(plain)-1)
	wantErr(t, "more than the limit", err, chunk.ErrCorrupt)
	for n := range z {
		_, err := seal.Decompress(nil, z[:n], 1<<20)
		wantErr(t, fmt.Sprintf("cut to %d bytes", n), err, chunk.ErrCorrupt)
	}
	_, err = seal.Decompress(nil, append(bytes.Clone(z), z...), 1<<20)
	wantErr(t, "two frames", err, chunk.ErrCorrupt)
	// Without a content size: a header that says so (RFC 8878, 3.1.1.1), and
	// one raw block.
	_, err = seal.Decompress(nil, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x09, 0x00, 0x00, 'a'}, 1<<20)
	wantErr(t, "no content size", err, chunk.ErrCorrupt)
	// With a size of 255 bytes, and one.
	_, err = seal.Decompress(nil, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0xff, 0x09, 0x00, 0x00, 'a'}, 1<<20)
	wantErr(t, "less than its content size", err, chunk.ErrCorrupt)
}

// TestBombs has small inputs that unpack to much more than is allowed.
func TestBombs(t *testing.T) {
	huge := seal.Compress(nil, make([]byte, 32<<20))
	if len(huge) > 1<<18 {
		t.Fatalf("32 MiB of zeros take %d bytes: no bomb", len(huge))
	}
	key := seal.NewFrameKey(make([]byte, 32), nil)
	stored := key.Seal(nil, 0, append([]byte{1}, huge...))
	n := allocated(func() {
		_, err := key.Open(nil, 0, stored)
		wantErr(t, "a frame of 32 MiB", err, chunk.ErrCorrupt)
		_, err = seal.Decompress(nil, huge, seal.MaxFrame)
		wantErr(t, "32 MiB where 20 are allowed", err, chunk.ErrCorrupt)
	})
	if n > 1<<20 {
		t.Errorf("refusing a bomb allocated %d bytes", n)
	}
	// One that lies about its size is stopped there. The size stands in the
	// last four bytes of the header.
	liar := bytes.Clone(huge)
	at := bytes.Index(liar, []byte{0, 0, 0, 2}) // 32 MiB
	if at < 0 || at > 16 {
		t.Fatalf("no size at %d", at)
	}
	binary.LittleEndian.PutUint32(liar[at:], 1000)
	n = allocated(func() {
		_, err := seal.Decompress(nil, liar, seal.MaxFrame)
		wantErr(t, "a bomb that claims 1,000 bytes", err, chunk.ErrCorrupt)
	})
	if n > 4<<20 {
		t.Errorf("a bomb that claims 1,000 bytes made the reader allocate %d", n)
	}
}

// TestFrozenFrames opens frames that were sealed when version 1 was made. The
// files never change.
func TestFrozenFrames(t *testing.T) {
	key := seal.NewFrameKey(bytes.Repeat([]byte{9}, 32), []byte("frozen pack"))
	for _, tt := range []struct {
		file   string
		chunks [][]byte
	}{
		{"v1-frame-raw.bin", [][]byte{randomBytes(1, 100), randomBytes(2, 30)}},
		{"v1-frame-zstd.bin", [][]byte{bytes.Repeat([]byte("cutbank "), 100), []byte("and more")}},
	} {
		plain := seal.AppendFrame(nil, tt.chunks)
		seals := func() []byte { return key.Seal(nil, 7, seal.Pack(nil, plain, seal.Default)) }
		p := frozen(t, tt.file, seals)
		if tt.file == "v1-frame-raw.bin" && !bytes.Equal(p, seals()) {
			t.Errorf("%s: written otherwise than it was", tt.file)
		}
		got, err := key.Open(nil, 7, p)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %v", tt.file, err)
		}
	}
}

// TestFrameKeyConcurrent is for the race detector: one key serves all.
func TestFrameKeyConcurrent(t *testing.T) {
	key := seal.NewFrameKey(make([]byte, 32), []byte("pack"))
	done := make(chan error)
	for g := range 4 {
		go func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 0))
			var err error
			for i := range 50 {
				plain := bytes.Repeat([]byte{byte(g), byte(i)}, rnd.IntN(5000))
				n := uint32(g*1000 + i)
				got, oerr := key.Open(nil, n, key.Seal(nil, n, seal.Pack(nil, plain, levels[i%3])))
				if oerr != nil || !bytes.Equal(got, plain) {
					err = fmt.Errorf("goroutine %d, frame %d: %w", g, i, oerr)
				}
			}
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
