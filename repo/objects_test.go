package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo/tree"
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

// frozenRing is the ring of the frozen objects; its file never changes.
func frozenRing(tb testing.TB) *seal.Ring {
	tb.Helper()
	r := &seal.Ring{}
	if err := json.Unmarshal(frozen(tb, "v1-ring.json", nil), r); err != nil {
		tb.Fatal(err)
	}
	return r
}

func sampleTime(day int) time.Time { return time.Date(2026, 11, day, 10, 20, 30, 123456789, time.UTC) }

func sampleID(b byte) (id ID) {
	for i := range id {
		id[i] = b
	}
	return id
}

func samplePage(b byte) PageID { return PageID{chunk.ID{b, 1, 2, 3}} }

func sampleSnapshot() *Snapshot {
	parent := sampleID(7)
	return &Snapshot{
		V: 1, ID: sampleID(0xab), Name: "host-1", Label: "before-upgrade", Note: "a <note> & \"more\"\n", Tags: []string{"a", "b"},
		Time: sampleTime(1), End: sampleTime(2), Host: "host-1.example", Program: "cutbank 1", Paths: []Path{"/etc", "/\xff\xfe"}, Exclude: []string{"*.tmp"},
		Parent: &parent, Tree: samplePage(1), Witness: samplePage(2), Totals: tree.Totals{Nodes: 10, Files: 6, Dirs: 3, Bytes: 1 << 60},
		Stats:  Stats{ReadBytes: 1, NewBytes: 2, Stored: 3, New: 4, Modified: 5, Unchanged: 6},
		Unread: 2, Problem: []string{`"/etc/shadow": permission denied`}, Changed: 1,
		Mode: "light", System: json.RawMessage(`{"kind":"consul"}`),
		Members: []Member{{Name: "n1", State: "complete", Start: sampleTime(3), End: sampleTime(4), Version: "1.2", Tree: samplePage(3), Writer: "00ff",
			Signature: []byte{1, 2, 3}, System: json.RawMessage(`{"x":1}`)}},
		Copied: []byte("record"),
	}
}

// laterSnapshot has the fields that came after the first sample.
func laterSnapshot() *Snapshot {
	s := sampleSnapshot()
	repairs := sampleID(8)
	s.Origin, s.Repairs = &Origin{Repo: sampleID(9), ID: sampleID(10)}, &repairs
	s.Lost = &Lost{Files: 1, Bytes: 2, Dirs: 3, Names: 4, Xattrs: 5, Paths: []string{`"/etc/shadow": 2 bytes`}}
	return s
}

// copiedSnapshot has those that came after the second one.
func copiedSnapshot() *Snapshot {
	s := laterSnapshot()
	s.Seen = sampleTime(15)
	return s
}

// lightSnapshot has those that came after the third one.
func lightSnapshot() *Snapshot {
	s := copiedSnapshot()
	s.Data = []string{"*.conf", "/ssl/"}
	return s
}

// samples has every object, with all its fields set.
func samples() map[string]struct {
	object string
	kind   seal.Kind
	s      seal.Sealing
	v      any
} {
	type sample = struct {
		object string
		kind   seal.Kind
		s      seal.Sealing
		v      any
	}
	id := sampleID(0xab)
	return map[string]sample{
		"config": {"config/1", seal.KindConfig, seal.ForList, &Config{V: 1, Repo: id, Created: sampleTime(1),
			Splitter:  SplitterConfig{Kind: "rabin", Min: 32 << 10, Avg: 64 << 10, Max: 256 << 10, Secret: 1<<64 - 1},
			FrameSize: 256 << 10, PackSize: 32 << 20, AppendOnly: true, Lock: "720h", Parity: "5"}},
		"config-rotated": {"config/2", seal.KindConfig, seal.ForList, &Config{V: 1, Repo: id, Created: sampleTime(1),
			Splitter:  SplitterConfig{Kind: "gear", Min: 32 << 10, Avg: 64 << 10, Max: 256 << 10, Secret: 1},
			FrameSize: 256 << 10, PackSize: 32 << 20, AppendOnly: true, Lock: "720h", Parity: "5",
			Epochs: []EpochConfig{{N: 1, Public: bytes.Repeat([]byte{1}, 1216)}, {N: 3, Public: bytes.Repeat([]byte{3}, 1216)}}, Removed: []ID{sampleID(1), sampleID(2)}}},
		"config-unfenced": {"config/3", seal.KindConfig, seal.ForList, &Config{V: 1, Repo: id, Created: sampleTime(1),
			Splitter:  SplitterConfig{Kind: "gear", Min: 32 << 10, Avg: 64 << 10, Max: 256 << 10, Secret: 1},
			FrameSize: 256 << 10, PackSize: 32 << 20, AppendOnly: true, Lock: "720h", Parity: "5", NoFencing: true,
			Epochs: []EpochConfig{{N: 1, Public: bytes.Repeat([]byte{1}, 1216)}}, Removed: []ID{sampleID(1)}}},
		"config-lagging": {"config/4", seal.KindConfig, seal.ForList, &Config{V: 1, Repo: id, Created: sampleTime(1),
			Splitter:  SplitterConfig{Kind: "gear", Min: 32 << 10, Avg: 64 << 10, Max: 256 << 10, Secret: 1},
			FrameSize: 256 << 10, PackSize: 32 << 20, AppendOnly: true, Lock: "720h", Parity: "5", NoFencing: true, ListingLag: "2m0s",
			Epochs: []EpochConfig{{N: 1, Public: bytes.Repeat([]byte{1}, 1216)}}, Removed: []ID{sampleID(1)}}},
		"grant": {"keys/" + id.String() + ".3", seal.KindKey, seal.Clear, &keyGrant{V: 1, ID: id, Epoch: 3, Created: sampleTime(1), Label: "laptop",
			Public: bytes.Repeat([]byte{4}, 1216), Sealed: []byte("sealed")}},
		"snapshot":       {"snapshots/" + id.String(), seal.KindSnapshot, seal.ForEpoch, sampleSnapshot()},
		"snapshot-later": {"snapshots/" + id.String(), seal.KindSnapshot, seal.ForEpoch, laterSnapshot()},
		"snapshot-copy":  {"snapshots/" + id.String(), seal.KindSnapshot, seal.ForEpoch, copiedSnapshot()},
		"snapshot-light": {"snapshots/" + id.String(), seal.KindSnapshot, seal.ForEpoch, lightSnapshot()},
		"tombstone":      {"snapshots/" + id.String(), seal.KindTombstone, seal.ForList, &Tombstone{V: 1, ID: id, Time: sampleTime(5), Why: "silent for 3 days"}},
		"intent":         {"intents/" + id.String(), seal.KindIntent, seal.ForList, &Intent{V: 1, ID: id, Started: sampleTime(6), Beat: 12, Host: "host-1", Program: "cutbank 1", PID: 4711}},
		"mark":           {"marks/" + id.String() + "-1", seal.KindMark, seal.ForEpoch, &Mark{V: 1, ID: id, Time: sampleTime(7), Op: "tag", Value: "keep", Until: sampleTime(8)}},
		"forgotten":      {"forgotten/" + id.String(), seal.KindForgotten, seal.ForList, &Forgotten{V: 1, ID: id, Time: sampleTime(9)}},
		"condemned": {"condemned/" + id.String(), seal.KindCondemned, seal.ForList, &Condemned{V: 1, ID: id, Time: sampleTime(10),
			Packs: []string{"00112233445566778899aabbccddeeff"}, Wait: []ID{sampleID(1), sampleID(2)}}},
		"writer": {"writers/" + id.String() + "-1", seal.KindWriter, seal.ForList, &Writer{V: 1, Public: bytes.Repeat([]byte{9}, 32), Names: []string{"web-*"},
			Rights: []string{"snapshot"}, Expires: sampleTime(11), Revoked: sampleTime(13), Note: "rack 7"}},
		"writer-revoked": {"writers/" + id.String() + "-2", seal.KindWriter, seal.ForList, &Writer{V: 1, Public: bytes.Repeat([]byte{9}, 32), Names: []string{"web-*"},
			Rights: []string{"write", "trusted"}, Expires: sampleTime(11), Revoked: sampleTime(13), Note: "rack 7",
			Accepted: map[ID][]byte{sampleID(4): bytes.Repeat([]byte{5}, 32), sampleID(6): bytes.Repeat([]byte{7}, 32)}}},
		"ledger": {"ledger/" + id.String(), seal.KindLedger, seal.ForList, &Ledger{V: 1, Time: sampleTime(12),
			Entries: []LedgerEntry{{Pack: "00112233445566778899aabbccddeeff", Time: sampleTime(14), Depth: "chunks", OK: true, What: "2 of 3 frames"}}}},
		"ledger-later": {"ledger/" + id.String(), seal.KindLedger, seal.ForList, &Ledger{V: 1, Time: sampleTime(12),
			Entries: []LedgerEntry{{Pack: "00112233445566778899aabbccddeeff", Time: sampleTime(14), Depth: "chunks", OK: true, What: "2 of 3 frames", Healed: true}}}},
	}
}

// addedLater names the sample that has a field which is younger than another
// sample of its kind.
var addedLater = map[string]string{
	"writer.Accepted": "writer-revoked",
	"config.Epochs":   "config-rotated",
	"config.Removed":  "config-rotated",

	"config.NoFencing":         "config-unfenced",
	"config-rotated.NoFencing": "config-unfenced",

	"config.ListingLag":          "config-lagging",
	"config-rotated.ListingLag":  "config-lagging",
	"config-unfenced.ListingLag": "config-lagging",

	"snapshot.Origin":       "snapshot-later",
	"snapshot.Repairs":      "snapshot-later",
	"snapshot.Lost":         "snapshot-later",
	"ledger.Entries.Healed": "ledger-later",

	"snapshot.Seen":       "snapshot-copy",
	"snapshot-later.Seen": "snapshot-copy",

	"snapshot.Data":       "snapshot-light",
	"snapshot-later.Data": "snapshot-light",
	"snapshot-copy.Data":  "snapshot-light",
}

// wantFilled checks that a sample has all fields of its kind, so that a field
// that is added later must be thought of here.
func wantFilled(t *testing.T, what string, v reflect.Value) {
	t.Helper()
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() || f.Tag.Get("json") == "-" {
			continue
		}
		if f.Tag.Get("json") == "" && f.Type.Kind() != reflect.Array {
			t.Errorf("%s: field %s has no name in JSON", what, f.Name)
		}
		x := v.Field(i)
		if _, ok := samples()[addedLater[what+"."+f.Name]]; x.IsZero() && !ok {
			t.Errorf("%s: the sample has no %s", what, f.Name)
		}
		if x.Kind() == reflect.Slice && x.Len() > 0 && x.Type().Elem().Kind() == reflect.Struct {
			x = x.Index(0)
		}
		if x.Kind() == reflect.Struct && strings.HasPrefix(x.Type().PkgPath(), "github.com/cutbankfs") {
			wantFilled(t, what+"."+f.Name, x)
		}
	}
}

// TestFrozenObjects reads what was written when version 1 was made, plain and
// sealed, and writes the plain form again. The files never change.
func TestFrozenObjects(t *testing.T) {
	k, err := frozenRing(t).Open()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range samples() {
		wantFilled(t, name, reflect.ValueOf(s.v))
		body, err := json.Marshal(s.v)
		if err != nil {
			t.Fatal(err)
		}
		plain := frozen(t, "v1-"+name+".json", func() []byte {
			var b bytes.Buffer
			if err := json.Indent(&b, body, "", "\t"); err != nil {
				t.Fatal(err)
			}
			return append(b.Bytes(), '\n')
		})
		var compact bytes.Buffer
		if err := json.Compact(&compact, plain); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(compact.Bytes(), body) {
			t.Errorf("%s is written as\n%s\nand was\n%s", name, body, compact.Bytes())
		}
		sealed := frozen(t, "v1-"+name+".bin", func() []byte {
			p, err := k.Seal(s.object, s.kind, s.s, body, rand.NewChaCha8([32]byte{1}))
			if err != nil {
				t.Fatal(err)
			}
			return p
		})
		o, err := k.OpenAs(s.object, s.kind, sealed)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := reflect.New(reflect.TypeOf(s.v).Elem())
		if err := decode(s.object, o.Body, got.Interface()); err != nil || !reflect.DeepEqual(got.Interface(), s.v) {
			t.Errorf("%s is read as %+v, %v", name, got.Elem(), err)
		}
	}
}

// TestFrozenRecord takes the way that a reader takes.
func TestFrozenRecord(t *testing.T) {
	k, err := frozenRing(t).Open()
	if err != nil {
		t.Fatal(err)
	}
	r := &Repo{k: k}
	want := sampleSnapshot()
	name := "snapshots/" + want.ID.String()
	got, err := r.parseRecord(name, want.ID, frozen(t, "v1-snapshot.bin", nil))
	if err != nil {
		t.Fatal(err)
	}
	want.sum = chunk.Digest(frozen(t, "v1-snapshot.bin", nil))
	if want.Writer = k.Owner().String(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, err := r.parseRecord(name, want.ID, frozen(t, "v1-tombstone.bin", nil)); got != nil || err != nil {
		t.Errorf("a tombstone is read as %+v, %v", got, err)
	}
	_, err = r.parseRecord(name, want.ID, frozen(t, "v1-mark.bin", nil))
	if !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("a mark in a record's place: %v", err)
	}
}

// TestFrozenKeys opens keys that were wrapped when version 1 was made. The
// files never change.
func TestFrozenKeys(t *testing.T) {
	ring := frozenRing(t)
	for _, tt := range []struct{ file, password, kdf string }{
		{"v1-key-none.bin", "", "none"},
		{"v1-key-argon2id.bin", "correct horse \u00e9", "argon2id"},
	} {
		id := sampleID(3)
		p := frozen(t, tt.file, func() []byte {
			p, err := wrapRing(ring, id, tt.password, "label", sampleTime(1), rand.NewChaCha8([32]byte{2}))
			if err != nil {
				t.Fatal(err)
			}
			return p
		})
		f, err := parseKey(keyName(id), p)
		if err != nil {
			t.Errorf("%s: %v", tt.file, err)
			continue
		}
		if f.V != 1 || f.ID != id || f.Label != "label" || f.KDF != tt.kdf || !f.Created.Equal(sampleTime(1)) {
			t.Errorf("%s: %+v", tt.file, f)
		}
		if got, err := f.unwrap(tt.password); err != nil || !reflect.DeepEqual(got, ring) {
			t.Errorf("%s: the ring is another one: %v", tt.file, err)
		}
	}
}

// TestFieldsOfLater has objects of a newer program: what this one rewrites keeps
// them, the others are read without.
func TestFieldsOfLater(t *testing.T) {
	for name, s := range samples() {
		body, err := json.Marshal(s.v)
		if err != nil {
			t.Fatal(err)
		}
		newer := append([]byte(`{"aaa":{"deep":[1,"two"]},`), body[1:]...)
		newer = append(newer[:len(newer)-1], `,"zzz":null}`...)
		got := reflect.New(reflect.TypeOf(s.v).Elem())
		if err := json.Unmarshal(newer, got.Interface()); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		extra := got.Elem().FieldByName("Extra")
		if extra.IsValid() {
			if extra.Len() != 2 {
				t.Errorf("%s: kept %v", name, extra)
			}
			again, err := json.Marshal(got.Interface())
			if want := string(body[:len(body)-1]) + `,"aaa":{"deep":[1,"two"]},"zzz":null}`; err != nil || string(again) != want {
				t.Errorf("%s is written again as\n%s, %v, want\n%s", name, again, err, want)
			}
			extra.SetZero()
		} else if name == "config" || name == "snapshot" {
			t.Errorf("%s keeps no fields of later", name)
		}
		if !reflect.DeepEqual(got.Interface(), s.v) {
			t.Errorf("%s: a field of later changes others: %+v", name, got.Elem())
		}
	}
}

// TestVersions: what a newer program wrote is not taken for nothing.
func TestVersions(t *testing.T) {
	for body, want := range map[string]error{`{"v":2}`: ErrFormat, `{}`: ErrFormat, `{"v":"1"}`: chunk.ErrCorrupt, ``: chunk.ErrCorrupt, `{"v":1,"id":5}`: chunk.ErrCorrupt} {
		if err := decode("intents/1", []byte(body), &Intent{}); !errors.Is(err, want) || !strings.Contains(err.Error(), "intents/1") {
			t.Errorf("%s: %v, want %v", body, err, want)
		}
	}
}

// TestEmptyObjects: what is left out comes back as it was.
func TestEmptyObjects(t *testing.T) {
	for name, s := range samples() {
		empty := reflect.New(reflect.TypeOf(s.v).Elem())
		body, err := json.Marshal(empty.Interface())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := reflect.New(reflect.TypeOf(s.v).Elem())
		if err := json.Unmarshal(body, got.Interface()); err != nil || !reflect.DeepEqual(got.Interface(), empty.Interface()) {
			t.Errorf("%s: %s is read as %+v, %v", name, body, got.Elem(), err)
		}
	}
}

func TestPathJSON(t *testing.T) {
	for _, tt := range []struct{ path, json string }{
		{"", `""`},
		{"/etc/\u00e9 \"x\"\n", `"/etc/é \"x\"\n"`},
		{"/a\xff", `{"b64":"L2H/"}`},
		{"\xed\xa0\x80", `{"b64":"7aCA"}`}, // a surrogate
	} {
		p, err := json.Marshal(Path(tt.path))
		if err != nil || string(p) != tt.json {
			t.Errorf("%q is %s, %v; want %s", tt.path, p, err, tt.json)
		}
		var got Path
		if err := json.Unmarshal([]byte(tt.json), &got); err != nil || got != Path(tt.path) {
			t.Errorf("%s is read as %q, %v", tt.json, got, err)
		}
	}
	for _, bad := range []string{`1`, `[]`, `{"b64":1}`, `{"b64":"?"}`} {
		var p Path
		if err := json.Unmarshal([]byte(bad), &p); err == nil {
			t.Errorf("%s is read as %q", bad, p)
		}
	}
}

func TestIDs(t *testing.T) {
	id := sampleID(0xc5)
	if got, ok := ParseID(id.String()); !ok || got != id {
		t.Errorf("%s is read as %s", id, got)
	}
	for _, bad := range []string{"", "c5", strings.Repeat("c", 31), strings.Repeat("c", 33), strings.Repeat("c", 34), strings.Repeat("c", 64), strings.Repeat("g", 32)} {
		if _, ok := ParseID(bad); ok {
			t.Errorf("%q is an ID", bad)
		}
		var got ID
		if err := got.UnmarshalText([]byte(bad)); !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	var p PageID
	for _, bad := range []string{"c5", strings.Repeat("c", 63), strings.Repeat("c", 66)} {
		if err := p.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is a page", bad)
		}
	}
	if err := p.UnmarshalText(nil); err != nil || !p.IsZero() {
		t.Errorf("no page is %s, %v", p, err)
	}
}

// FuzzObjects: whatever JSON stands in an object, reading it does not panic.
func FuzzObjects(f *testing.F) {
	for _, s := range samples() {
		body, err := json.Marshal(s.v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Add([]byte(`{"id":"` + strings.Repeat("00", 40) + `"}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, s := range samples() {
			v := reflect.New(reflect.TypeOf(s.v).Elem()).Interface()
			if json.Unmarshal(p, v) != nil {
				continue
			}
			q, err := json.Marshal(v)
			if err != nil {
				continue // a time that JSON cannot say
			}
			again := reflect.New(reflect.TypeOf(s.v).Elem()).Interface()
			if err := json.Unmarshal(q, again); err != nil {
				t.Errorf("%T is written as %s, and not read: %v", v, q, err)
			}
			if c, ok := v.(*Config); ok {
				_ = c.check()
			}
		}
		if key, err := parseKey(keyName(sampleID(1)), seal.SealClear(seal.KindKey, p)); err == nil && key.KDF == "none" {
			if r, err := key.unwrap(""); err == nil {
				_, _ = r.Open()
			}
		}
	})
}
