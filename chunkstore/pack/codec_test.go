package pack_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"runtime"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// sampleTrailer has everything that a trailer can have.
func sampleTrailer() *pack.Trailer {
	tr := &pack.Trailer{
		Name:   pack.Name{1, 2},
		Header: pack.Header{Kind: pack.Meta, Epoch: 300, Writer: [16]byte{3}, Session: [16]byte{4}, Wrapped: []byte("wrapped")},
		Size:   1 << 20,
		Frames: []pack.Frame{
			{Off: 54, Stored: 500, Chunks: []pack.Chunk{{ID: chunk.ID{1}, Len: 100}, {ID: chunk.ID{2}, Len: 300}}},
			{Off: 600, Stored: 20, Chunks: []pack.Chunk{{ID: chunk.ID{3}, Len: 1, Kind: pack.Delta, Base: chunk.ID{1}}, {ID: chunk.ID{4}, Len: 2}},
				Extra: protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 77)},
		},
		Extra:     protowire.AppendString(protowire.AppendTag(nil, 98, protowire.BytesType), "from later"),
		Signature: bytes.Repeat([]byte{0x51}, 64),
	}
	for i := range tr.Frames {
		f := &tr.Frames[i]
		f.Plain = f.Start(len(f.Chunks))
	}
	return tr
}

func TestTrailerRoundTrip(t *testing.T) {
	want := sampleTrailer()
	p := pack.AppendTrailer(nil, want)
	got, err := pack.ParseTrailer(p)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v; want %+v", got, err, want)
	}
	if again := pack.AppendTrailer([]byte("front"), got); string(again) != "front"+string(p) {
		t.Error("written again it is other bytes")
	}
	// A trailer without anything is its version.
	if got, err := pack.ParseTrailer(pack.AppendTrailer(nil, &pack.Trailer{})); err != nil || len(got.Frames) != 0 || got.Size != 0 {
		t.Errorf("empty: %+v, %v", got, err)
	}
}

// TestUnknownFields has fields of a newer program between the known ones, of
// every wire type: they are kept, behind.
func TestUnknownFields(t *testing.T) {
	unknown := protowire.AppendFixed32(protowire.AppendTag(nil, 50, protowire.Fixed32Type), 1)
	unknown = protowire.AppendFixed64(protowire.AppendTag(unknown, 51, protowire.Fixed64Type), 1)
	unknown = protowire.AppendVarint(protowire.AppendTag(unknown, 52, protowire.VarintType), 1)
	unknown = protowire.AppendBytes(protowire.AppendTag(unknown, 2, protowire.BytesType), []byte("a known number, another type"))
	p := pack.AppendTrailer(nil, &pack.Trailer{Size: 5})
	p = append(append([]byte{p[0]}, unknown...), p[1:]...)
	got, err := pack.ParseTrailer(p)
	if err != nil || got.Size != 5 || got.Kind != 0 || !bytes.Equal(got.Extra, unknown) {
		t.Errorf("%+v, %v", got, err)
	}
	if again, err := pack.ParseTrailer(pack.AppendTrailer(nil, got)); err != nil || !reflect.DeepEqual(again, got) {
		t.Errorf("written and read again: %+v, %v", again, err)
	}
}

// TestVerify: a trailer proves itself, wherever it stands, and with the fields of
// a newer program in it.
func TestVerify(t *testing.T) {
	k := testKeys(t)
	x := build(t, k, pack.Data, []int{10, 20}, []int{30})
	p := pack.AppendTrailer(nil, x.trailer)
	for _, tt := range []struct {
		name string
		do   func(*pack.Trailer)
		want error // nil: none
	}{
		{"as it is", func(*pack.Trailer) {}, nil},
		{"another name", func(tr *pack.Trailer) { tr.Name[0]++ }, chunk.ErrCorrupt},
		{"another kind", func(tr *pack.Trailer) { tr.Kind = pack.Meta }, chunk.ErrCorrupt},
		{"another epoch", func(tr *pack.Trailer) { tr.Epoch++ }, chunk.ErrCorrupt},
		{"another writer", func(tr *pack.Trailer) { tr.Writer[0]++ }, seal.ErrNoKey},
		{"another session", func(tr *pack.Trailer) { tr.Session[0]++ }, chunk.ErrCorrupt},
		{"another key", func(tr *pack.Trailer) { tr.Wrapped[0] ^= 1 }, chunk.ErrCorrupt},
		{"another size", func(tr *pack.Trailer) { tr.Size++ }, chunk.ErrCorrupt},
		{"a frame less", func(tr *pack.Trailer) { tr.Frames = tr.Frames[:1] }, chunk.ErrCorrupt},
		{"another place", func(tr *pack.Trailer) { tr.Frames[1].Off++ }, chunk.ErrCorrupt},
		{"another chunk", func(tr *pack.Trailer) { tr.Frames[1].Chunks[0].ID[31]++ }, chunk.ErrCorrupt},
		{"a field more", func(tr *pack.Trailer) { tr.Extra = sampleTrailer().Extra }, chunk.ErrCorrupt},
		{"another signature", func(tr *pack.Trailer) { tr.Signature[0] ^= 1 }, chunk.ErrCorrupt},
		{"no signature", func(tr *pack.Trailer) { tr.Signature = nil }, chunk.ErrCorrupt},
	} {
		tr, err := pack.ParseTrailer(bytes.Clone(p))
		if err != nil {
			t.Fatal(err)
		}
		tt.do(tr)
		err = tr.Verify(k)
		if tt.want == nil {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		wantErr(t, tt.name, err, tt.want)
	}

	later := sampleTrailer()
	later.Writer, later.Signature = k.Self(), nil
	plain := pack.AppendTrailer(nil, later)
	d := chunk.Digest(plain)
	sig, err := k.Sign(bytes.Join([][]byte{[]byte("cutbank pack"), []byte(later.Name.Object()), d[:]}, []byte{0}))
	if err != nil {
		t.Fatal(err)
	}
	signed := protowire.AppendBytes(protowire.AppendTag(plain, 99, protowire.BytesType), sig)
	tr, err := pack.ParseTrailer(signed)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Verify(k); err != nil {
		t.Errorf("with fields of a newer program: %v", err)
	}
}

func TestDelta(t *testing.T) {
	tr := sampleTrailer()
	var ids []chunk.ID
	tr.Locations(func(id chunk.ID, loc pack.Location) {
		ids = append(ids, id)
		if id == (chunk.ID{4}) && (loc.Start != tr.Frames[1].Start(1) || loc.Frame != 1 || loc.Off != 600) {
			t.Errorf("the chunk behind a delta is at %+v", loc)
		}
	})
	if want := []chunk.ID{{1}, {2}, {4}}; !reflect.DeepEqual(ids, want) {
		t.Errorf("locations of %v, want %v: a delta has none", ids, want)
	}
}

func TestParseTrailerRefuses(t *testing.T) {
	field := func(n protowire.Number, p []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag([]byte{1}, n, protowire.BytesType), p)
	}
	number := func(n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag([]byte{1}, n, protowire.VarintType), v)
	}
	frame := func(do func(*pack.Frame)) []byte {
		tr := sampleTrailer()
		do(&tr.Frames[0])
		return pack.AppendTrailer(nil, tr)
	}
	chunks := func(p []byte) []byte {
		return field(8, protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), p))
	}
	id := make([]byte, 32)
	tests := []struct {
		name string
		p    []byte
		want error
	}{
		{"nothing", nil, chunk.ErrCorrupt},
		{"version 0", []byte{0}, seal.ErrVersion},
		{"version 2", []byte{2}, seal.ErrVersion},
		{"half a tag", []byte{1, 0x80}, chunk.ErrCorrupt},
		{"field number 0", []byte{1, 0, 0}, chunk.ErrCorrupt},
		{"field cut short", []byte{1, 0x0a, 16, 0}, chunk.ErrCorrupt},
		{"name of 15 bytes", field(1, make([]byte, 15)), chunk.ErrCorrupt},
		{"name of 17 bytes", field(1, make([]byte, 17)), chunk.ErrCorrupt},
		{"writer of 1 byte", field(4, []byte{1}), chunk.ErrCorrupt},
		{"session of no bytes", field(5, nil), chunk.ErrCorrupt},
		{"epoch beyond 32 bits", number(3, 1<<32), chunk.ErrCorrupt},
		{"size beyond 1 GiB", number(7, pack.MaxSize+1), chunk.ErrCorrupt},
		{"size beyond 63 bits", number(7, math.MaxUint64), chunk.ErrCorrupt},
		{"offset beyond 32 bits", field(8, number(1, 1<<32)[1:]), chunk.ErrCorrupt},
		{"frame of 1 GiB", frame(func(f *pack.Frame) { f.Plain = 1 << 30 }), chunk.ErrCorrupt},
		{"stored frame of 1 GiB", frame(func(f *pack.Frame) { f.Stored = 1 << 30 }), chunk.ErrCorrupt},
		{"frame behind the end", frame(func(f *pack.Frame) { f.Off = 1<<20 - 499 }), chunk.ErrCorrupt},
		{"offset that overflows", frame(func(f *pack.Frame) { f.Off = math.MaxUint32 }), chunk.ErrCorrupt},
		{"chunks that do not fill it", frame(func(f *pack.Frame) { f.Plain++ }), chunk.ErrCorrupt},
		{"chunks that overfill it", frame(func(f *pack.Frame) { f.Chunks[0].Len += 1 << 31 }), chunk.ErrCorrupt},
		{"chunks whose lengths overflow", frame(func(f *pack.Frame) {
			f.Chunks[0].Len, f.Chunks[1].Len = math.MaxUint32, f.Chunks[1].Len+f.Chunks[0].Len+1
		}), chunk.ErrCorrupt},
		{"length without ID", chunks([]byte{8}), chunk.ErrCorrupt},
		{"length beyond 32 bits", chunks(append(binary.AppendUvarint(nil, 1<<35), id...)), chunk.ErrCorrupt},
		{"length without end", chunks(bytes.Repeat([]byte{0xff}, 50)), chunk.ErrCorrupt},
		{"delta without base", chunks(append([]byte{8 | 1}, id...)), chunk.ErrCorrupt},
		{"field behind the signature", append(field(99, make([]byte, 64)), number(50, 1)[1:]...), chunk.ErrCorrupt},
		{"two signatures", append(field(99, make([]byte, 64)), field(99, make([]byte, 64))[1:]...), chunk.ErrCorrupt},
		{"unknown kind of chunk", chunks(append([]byte{8 | 5}, id...)), seal.ErrVersion},
	}
	for _, tt := range tests {
		_, err := pack.ParseTrailer(tt.p)
		wantErr(t, tt.name, err, tt.want)
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	h := &pack.Header{Kind: pack.Data, Epoch: 1, Wrapped: []byte("wrapped")}
	p := pack.AppendHeader(nil, h)
	if got, n, err := pack.ParseHeader(append(p, "frames"...)); err != nil || n != len(p) || !reflect.DeepEqual(got, h) {
		t.Errorf("%+v of %d bytes, %v", got, n, err)
	}
	for n := range p {
		_, _, err := pack.ParseHeader(p[:n])
		wantErr(t, "cut short", err, chunk.ErrCorrupt)
	}
	for _, tt := range []struct {
		name string
		at   int
		b    byte
		want error
	}{
		{"magic", 0, 'x', chunk.ErrCorrupt},
		{"another object", 7, 'S', chunk.ErrCorrupt},
		{"version 0", 8, 0, seal.ErrVersion},
		{"version 2", 8, 2, seal.ErrVersion},
		{"version 257", 9, 1, seal.ErrVersion},
		{"kind 0", 10, 0, seal.ErrVersion},
		{"kind 3", 10, 3, seal.ErrVersion},
		{"reserved byte", 11, 1, seal.ErrVersion},
		{"wrapped key too long", 49, 1, chunk.ErrCorrupt},
	} {
		bad := bytes.Clone(p)
		bad[tt.at] = tt.b
		_, _, err := pack.ParseHeader(bad)
		wantErr(t, tt.name, err, tt.want)
	}
}

// TestFrozenTrailer reads a plain trailer as index segments hold it. Its file
// never changes.
func TestFrozenTrailer(t *testing.T) {
	want := sampleTrailer()
	p := frozen(t, "v1-trailer.bin", func() []byte { return pack.AppendTrailer(nil, want) })
	if got, err := pack.ParseTrailer(p); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if !bytes.Equal(pack.AppendTrailer(nil, want), p) {
		t.Error("it is written otherwise than it was")
	}
	h := &pack.Header{Kind: pack.Meta, Epoch: 70000, Writer: [16]byte{1}, Session: [16]byte{2}, Wrapped: []byte("wrapped")}
	p = frozen(t, "v1-header.bin", func() []byte { return pack.AppendHeader(nil, h) })
	if got, n, err := pack.ParseHeader(p); err != nil || n != len(p) || !reflect.DeepEqual(got, h) || !bytes.Equal(pack.AppendHeader(nil, h), p) {
		t.Errorf("header: %+v, %v", got, err)
	}
}

// TestEmptyFrames: millions of frames without a chunk, which compress to nothing,
// must not take gigabytes in everybody who reads the index.
func TestEmptyFrames(t *testing.T) {
	p := append(make([]byte, 0, 8<<20), 1)
	for len(p) < 8<<20 {
		p = protowire.AppendBytes(protowire.AppendTag(p, 8, protowire.BytesType), nil)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := pack.ParseTrailer(p)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > uint64(len(p)) {
		t.Errorf("%d bytes took %d", len(p), took)
	}
}
