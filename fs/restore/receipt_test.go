package restore

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

func makeReceipt(t *testing.T, dir string) []byte {
	t.Helper()
	odd := memFile("odd\xff\n", []byte("odd"))
	odd.attr.Mtime.Sec = -5
	node := memDir("", memDir("d", memFile("f", random(1, 5*memChunk))), memLink("l", "to\xfe"), odd, memFile("z", nil))
	var b bytes.Buffer
	if _, err := Run(t.Context(), []Item{{Node: node}}, dir, Options{Receipt: &b, Source: "host/latest"}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func check(t *testing.T, receipt []byte, dir string) (what []string, err error) {
	t.Helper()
	for m, err := range Check(t.Context(), bytes.NewReader(receipt), dir) {
		if err != nil {
			return what, err
		}
		what = append(what, m.Path+":"+m.What)
	}
	slices.Sort(what)
	return what, nil
}

func TestReceipt(t *testing.T) {
	dir := t.TempDir()
	receipt := makeReceipt(t, dir)
	if what, err := check(t, receipt, dir); err != nil || len(what) > 0 {
		t.Fatalf("fresh: %q, %v", what, err)
	}
	lines := strings.Split(strings.TrimSuffix(string(receipt), "\n"), "\n")
	var end ReceiptLine
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &end); err != nil || end.Entries != 6 || end.Files != 3 || end.Bytes != 5*memChunk+3 {
		t.Errorf("end %+v, %v", end, err)
	}
	sum := chunk.Digest(random(1, 5*memChunk))
	if !strings.Contains(string(receipt), hex.EncodeToString(sum[:])) {
		t.Error("the receipt does not hold the file's plain BLAKE3")
	}

	at := func(rel string) string { return filepath.Join(dir, rel) }
	data := random(1, 5*memChunk)
	data[9] ^= 1
	steps := []struct {
		do   func() error
		want string
	}{
		{func() error { return os.Chmod(at("z"), 0o600) }, "z:mode"},
		{func() error { return os.Remove(at("odd\xff\n")) }, "odd\xff\n:missing z:mode"},
		{func() error {
			return errors.Join(os.WriteFile(at("d/f"), data, 0o644), os.Chtimes(at("d/f"), someTime.Time(), someTime.Time()))
		}, "d/f:content"},
		{func() error { return os.Chtimes(at("d/f"), time.Unix(1, 0), time.Unix(1, 0)) }, "d/f:mtime"},
		{func() error { return os.Truncate(at("d/f"), 7) }, "d/f:size"},
		{func() error { return errors.Join(os.Remove(at("l")), os.Symlink("else", at("l"))) }, "l:target"},
		{func() error { return errors.Join(os.Rename(at("d"), at("e")), os.Symlink("e", at("d"))) }, "d/f:missing d:kind"},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatal(err)
		}
		what, err := check(t, receipt, dir)
		for _, w := range strings.Split(s.want, " ") {
			if err != nil || !slices.Contains(what, w) {
				t.Errorf("want %q in %q, %v", w, what, err)
			}
		}
	}
}

// TestReceiptTampered: every byte counts, and so does every cut.
func TestReceiptTampered(t *testing.T) {
	dir := t.TempDir()
	receipt := makeReceipt(t, dir)
	whole := func(b []byte) error {
		for _, err := range ReadReceipt(bytes.NewReader(b)) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := whole(receipt); err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(receipt[:len(receipt)-1], '\n') + 1
	for i := range receipt[:last] {
		b := bytes.Clone(receipt)
		b[i] ^= 1
		if err := whole(b); !errors.Is(err, ErrReceipt) {
			t.Errorf("byte %d (%q) changed: %v", i, receipt[i], err)
		}
		if err := whole(receipt[:i]); !errors.Is(err, ErrReceipt) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	if err := whole(append(bytes.Clone(receipt), receipt...)); !errors.Is(err, ErrReceipt) {
		t.Errorf("twice: %v", err)
	}
}

// TestHostileReceipt: a receipt cannot make Check look outside the target.
func TestHostileReceipt(t *testing.T) {
	top := t.TempDir()
	put(t, top, map[string]string{"secret": "s", "target/link": "-> ..", "target/f": ""})
	for _, p := range []string{"../secret", "/etc/passwd", "link/secret", "a/../../secret", ""} {
		var b bytes.Buffer
		rw := &receiptWriter{w: &b}
		rw.start("x", "")
		l := newLine(p, memFile("secret", []byte("s")).Attr(), nil)
		rw.line(l)
		rw.end(Totals{})
		what, err := check(t, b.Bytes(), filepath.Join(top, "target"))
		if err != nil || len(what) != 1 || !strings.HasSuffix(what[0], ":missing") && !strings.HasSuffix(what[0], ":unreadable") {
			t.Errorf("%q: %q, %v", p, what, err)
		}
	}
}

func FuzzReceipt(f *testing.F) {
	f.Add([]byte(`{"v":1,"type":"receipt"}` + "\n" + `{"v":1,"type":"end","blake3":""}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for l, err := range ReadReceipt(bytes.NewReader(b)) {
			if err == nil && l == nil {
				t.Error("neither a line nor an error")
			}
		}
	})
}
