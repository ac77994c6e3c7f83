package consul

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// member is one of an archive's files, as a test wants it.
type member struct {
	name, text string
}

// pack makes an archive of members, right or wrong.
func pack(t testing.TB, members []member, behindTar, behind string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, m := range members {
		if err := w.WriteHeader(&tar.Header{Name: m.name, Mode: 0o600, Size: int64(len(m.text)), ModTime: time.Unix(1e9, 5e8)}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), writeString(z, behindTar), z.Close(), writeString(&b, behind)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeString(w io.Writer, s string) error {
	_, err := io.WriteString(w, s)
	return err
}

func sums(meta, state string) string {
	return fmt.Sprintf("%x  state.bin\n%x  meta.json\n", sha256.Sum256([]byte(state)), sha256.Sum256([]byte(meta)))
}

const testMeta = `{"Version":1,"ID":"2-340-1795244068292","Index":340,"Term":2,"Size":5}` + "\n"

func TestArchive(t *testing.T) {
	meta, state := member{"meta.json", testMeta}, member{"state.bin", "state"}
	list := member{"SHA256SUMS", sums(testMeta, "state")}
	whole := pack(t, []member{meta, state, list}, "", "")
	var got bytes.Buffer
	a, err := readArchive(bytes.NewReader(whole), &got)
	if err != nil || got.String() != "state" || a.meta.Index != 340 {
		t.Fatalf("%v, %q, %+v", err, got.String(), a)
	}
	if made, ok := a.meta.time(); !ok || made.UnixMilli() != 1795244068292 {
		t.Errorf("made at %v, %v", made, ok)
	}
	var again bytes.Buffer
	if err := a.write(&again, &got); err != nil || !bytes.Equal(again.Bytes(), whole) {
		t.Errorf("written again: %d bytes of %d, %v", again.Len(), len(whole), err)
	}
	for name, p := range map[string][]byte{
		"empty":             nil,
		"no gzip":           []byte("state"),
		"behind tar":        pack(t, []member{meta, state, list}, "x", ""),
		"behind gzip":       pack(t, []member{meta, state, list}, "", "x"),
		"two streams":       append(bytes.Clone(whole), whole...),
		"no sums":           pack(t, []member{meta, state}, "", ""),
		"no state":          pack(t, []member{meta, list}, "", ""),
		"no meta":           pack(t, []member{state, list}, "", ""),
		"twice":             pack(t, []member{meta, state, state, list}, "", ""),
		"another file":      pack(t, []member{meta, state, {"x", "x"}, list}, "", ""),
		"another state":     pack(t, []member{meta, {"state.bin", "State"}, list}, "", ""),
		"longer state":      pack(t, []member{meta, {"state.bin", "states"}, {"SHA256SUMS", sums(testMeta, "states")}}, "", ""),
		"sums of one":       pack(t, []member{meta, state, {"SHA256SUMS", list.text[:76]}}, "", ""),
		"sums of others":    pack(t, []member{meta, state, {"SHA256SUMS", list.text + "00  x\n"}}, "", ""),
		"meta is no JSON":   pack(t, []member{{"meta.json", "{"}, state, {"SHA256SUMS", sums("{", "state")}}, "", ""),
		"meta is too large": pack(t, []member{{"meta.json", string(make([]byte, maxMeta+1))}, state, list}, "", ""),
	} {
		if _, err := readArchive(bytes.NewReader(p), io.Discard); !errors.Is(err, system.ErrIncomplete) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range len(whole) {
		if _, err := readArchive(bytes.NewReader(whole[:n]), io.Discard); !errors.Is(err, system.ErrIncomplete) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// TestArchiveFlips: no flipped bit gives another state.
func TestArchiveFlips(t *testing.T) {
	whole := pack(t, []member{{"meta.json", testMeta}, {"state.bin", "state"}, {"SHA256SUMS", sums(testMeta, "state")}}, "", "")
	for i := range whole {
		for bit := range 8 {
			p := bytes.Clone(whole)
			p[i] ^= 1 << bit
			var got bytes.Buffer
			if a, err := readArchive(bytes.NewReader(p), &got); err == nil && (got.String() != "state" || string(a.metaJSON) != testMeta) {
				t.Errorf("byte %d, bit %d: %q, %q", i, bit, got.String(), a.metaJSON)
			}
		}
	}
}

// encode makes a value of MessagePack as Consul's servers do: strings and bytes alike.
func encode(t testing.TB, v any) []byte {
	t.Helper()
	p, err := appendValue(nil, v)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type entry struct {
	kind  uint8
	value any
}

// state makes a state of records.
func state(t testing.TB, list ...entry) []byte {
	t.Helper()
	p := encode(t, map[string]any{"LastIndex": uint64(7)})
	for _, e := range list {
		p = append(p, e.kind)
		if raw, ok := e.value.([]byte); ok {
			p = append(p, raw...)
		} else {
			p = append(p, encode(t, e.value)...)
		}
	}
	return p
}

func kv(key, value string, more ...any) entry {
	m := map[string]any{"Key": key, "Value": value, "Flags": uint64(0), "LockIndex": uint64(0), "CreateIndex": uint64(3), "ModifyIndex": uint64(4), "Session": ""}
	for i := 0; i+1 < len(more); i += 2 {
		m[more[i].(string)] = more[i+1]
	}
	return entry{kindKVS, m}
}

func TestWalk(t *testing.T) {
	big := string(bytes.Repeat([]byte("v"), 3<<20))
	p := state(t, kv("a", "1"), kv("b", big), entry{200, []byte{0xc7, 3, 9, 1, 2, 3}}, entry{kindIndex, map[string]any{"Key": "kvs", "Value": uint64(9)}}, kv("c", ""))
	w, err := newWalker(bytes.NewReader(p))
	if err != nil || w.lastIndex() != 7 {
		t.Fatal(err, w.lastIndex())
	}
	var kinds []uint8
	at := w.pos()
	for {
		rec, err := w.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.off != at || rec.kind != p[at] || !bytes.Equal(rec.body, p[at+1:at+rec.len()]) {
			t.Fatalf("record at %d, want %d", rec.off, at)
		}
		at += rec.len()
		kinds = append(kinds, rec.kind)
		if rec.kind == kindKVS {
			kv, err := parsePair(rec.body)
			if err != nil {
				t.Fatal(err)
			}
			if got := p[rec.off+1+kv.valueOff:][:kv.size]; !bytes.Equal(got, kv.value) {
				t.Errorf("%s: the value is not at %d", kv.key, kv.valueOff)
			}
		}
	}
	if at != int64(len(p)) || fmt.Sprint(kinds) != "[2 2 200 16 2]" {
		t.Errorf("ended at %d of %d, %v", at, len(p), kinds)
	}
	for n := int64(1); n < 200; n++ {
		_, err := scan(bytes.NewReader(p[:n]), nil)
		if err != nil && !errors.Is(err, system.ErrIncomplete) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	deep := append(state(t), kindSession)
	deep = append(deep, bytes.Repeat([]byte{0x91}, 1<<20)...)
	if _, err := scan(bytes.NewReader(append(deep, 0xc0)), nil); !errors.Is(err, system.ErrIncomplete) {
		t.Errorf("a million arrays: %v", err)
	}
	if _, err := scan(bytes.NewReader(append(state(t), kindSession, 0xdb, 0xff, 0xff, 0xff, 0xff, 1)), nil); !errors.Is(err, system.ErrIncomplete) {
		t.Errorf("a string of 4 GiB: %v", err)
	}
}

// FuzzState: no state makes the walker, the view's names or the reduction panic; what
// a reduction leaves can be walked; and the pieces that a state is cut into are all of
// it.
func FuzzState(f *testing.F) {
	f.Add(state(f, kv("a/b", "1"), kv("a", "2", "Flags", uint64(5)), entry{kindToken, map[string]any{"AccessorID": "x", "SecretID": "y"}}))
	f.Add(state(f, entry{kindConfig, []byte("\xa2ab")}, entry{kindPeerSecrets, msgp.AppendBytes(nil, []byte{8, 1})}))
	f.Fuzz(func(t *testing.T, p []byte) {
		keys := map[string]bool{}
		var small []byte
		sum, err := scan(bytes.NewReader(p), func(rec *record, v any, kv *pair) error {
			if kv != nil {
				if len(kv.key) < 2000 {
					keys[kv.key] = true
				}
				if !kv.absent && !bytes.Equal(kv.value, rec.body[kv.valueOff:][:kv.size]) {
					t.Fatal("the value is elsewhere")
				}
			} else if v != nil {
				render(mask(v))
			}
			var err error
			small, err = dataless(append(small, rec.kind), rec)
			return err
		})
		if err != nil {
			return
		}
		at := int64(0)
		for _, c := range sum.cuts {
			if c <= at {
				t.Fatalf("cut at %d after %d", c, at)
			}
			at = c
		}
		if at != int64(len(p)) {
			t.Fatalf("the last cut is at %d of %d", at, len(p))
		}
		checkPaths(t, keys)
		if _, err := scan(bytes.NewReader(append(state(t), small...)), nil); err != nil {
			t.Fatalf("what is left: %v", err)
		}
	})
}
