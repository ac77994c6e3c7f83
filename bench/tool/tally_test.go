package tool

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
)

func TestTallyOfDamagedStreams(t *testing.T) {
	var whole bytes.Buffer
	w := tar.NewWriter(&whole)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 1000, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := TallyTar(bytes.NewReader(whole.Bytes())); err != nil || got != (Tally{Files: 1, Bytes: 1000}) {
		t.Fatalf("got %v, %v", got, err)
	}
	if got, err := TallyTar(bytes.NewReader(whole.Bytes()[:900])); err == nil {
		t.Errorf("cut off: got %v and no error", got)
	}
	for _, text := range []string{"f\n", "f x\n", "find: nonsense\n"} {
		if got, err := TallyFind(strings.NewReader(text)); err == nil {
			t.Errorf("%q: got %v and no error", text, got)
		}
	}
	if got, err := TallyFind(strings.NewReader("f 5\nd 4096\np 0\nl 3\n")); err != nil || got != (Tally{Files: 1, Dirs: 1, Links: 1, Bytes: 5}) {
		t.Errorf("got %v, %v", got, err)
	}
}
