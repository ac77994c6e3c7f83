package index

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

var write = flag.Bool("write", false, "write the frozen samples that are missing")

func frozenSegment() *Segment {
	s := &Segment{
		Replaced: []SegmentName{{1, 2, 3}, {0xff, 15: 0xee}},
		Dropped:  []pack.Name{testName(8)},
		Packs:    testPacks(0, 2),
	}
	s.Packs[1].Frames = s.Packs[1].Frames[:1]
	s.Packs[1].Kind = pack.Meta
	s.Extra = protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 7)
	return s
}

func TestFrozenSegment(t *testing.T) {
	path := filepath.Join("testdata", "segment-v1.bin")
	s := frozenSegment()
	got := AppendSegment(nil, s)
	if *write {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			f.Write(got)
			f.Close()
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("a segment is not written as version 1 was")
	}
	r, err := ParseSegment(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, s) {
		t.Errorf("read %+v, want %+v", r, s)
	}
}

func TestParseSegmentRefuses(t *testing.T) {
	name := make([]byte, 16)
	for _, c := range []struct {
		what string
		p    []byte
		want error
	}{
		{"nothing", nil, chunk.ErrCorrupt},
		{"newer version", []byte{2}, seal.ErrVersion},
		{"short name", appendBytes([]byte{1}, 1, name[:15]), chunk.ErrCorrupt},
		{"long name", appendBytes([]byte{1}, 2, append(name, 0)), chunk.ErrCorrupt},
		{"name as a number", appendVarint([]byte{1}, 1, 3), chunk.ErrCorrupt},
		{"cut field", appendBytes([]byte{1}, 1, name)[:10], chunk.ErrCorrupt},
		{"empty trailer", appendBytes([]byte{1}, 3, nil), chunk.ErrCorrupt},
		{"newer trailer", appendBytes([]byte{1}, 3, []byte{2}), seal.ErrVersion},
		{"trailer without a name", appendBytes([]byte{1}, 3, []byte{1}), chunk.ErrCorrupt},
		{"too long", make([]byte, maxSegment+1), chunk.ErrCorrupt},
	} {
		if _, err := ParseSegment(c.p); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
}

func TestSegmentNames(t *testing.T) {
	n := SegmentName{0xab, 15: 1}
	if got, ok := ParseSegmentName(n.Object()); !ok || got != n {
		t.Errorf("%s is read as %s, %v", n.Object(), got, ok)
	}
	for _, s := range []string{"", "index/", "index/AB000000000000000000000000000001", "packs/ab000000000000000000000000000001", "index/ab00000000000000000000000000000x", n.Object() + "0"} {
		if _, ok := ParseSegmentName(s); ok {
			t.Errorf("%q is taken for a segment", s)
		}
	}
}

func FuzzSegment(f *testing.F) {
	f.Add(AppendSegment(nil, frozenSegment()))
	f.Add(AppendSegment(nil, &Segment{}))
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := ParseSegment(p)
		if err != nil {
			if !errors.Is(err, chunk.ErrCorrupt) && !errors.Is(err, seal.ErrVersion) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		q := AppendSegment(nil, s)
		again, err := ParseSegment(q)
		if err != nil {
			t.Fatalf("what was written does not read: %v", err)
		}
		if !bytes.Equal(AppendSegment(nil, again), q) {
			t.Fatal("writing twice differs")
		}
		for _, tr := range s.Packs {
			if n := len(pack.AppendTrailer(nil, tr)); n > trailerBytes(tr) {
				t.Fatalf("a trailer takes %d bytes, estimated %d", n, trailerBytes(tr))
			}
		}
	})
}

func FuzzMeta(f *testing.F) {
	m := &meta{repo: testRepo, covered: []SegmentName{{1}}, dropped: []pack.Name{{2}}, names: []pack.Name{{3}, {4}}, keys: 9,
		chunks: []tableMeta{{100, make([]byte, tailSize)}}, packs: []tableMeta{{101, make([]byte, tailSize)}}}
	p := appendMeta(nil, m)
	if got, err := parseMeta(p); err != nil || !reflect.DeepEqual(got, m) {
		f.Fatalf("%+v, %v, want %+v", got, err, m)
	}
	f.Add(p[:len(p)-32])
	f.Fuzz(func(t *testing.T, p []byte) {
		d := chunk.Digest(p)
		if m, err := parseMeta(append(p, d[:]...)); err == nil && len(m.names)*16 > len(p) {
			t.Fatal("more names than bytes")
		}
	})
}
