package source

import (
	"context"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestXattrsByDescriptor reads attributes as it is done where /proc is not
// mounted, and wants what the usual way gives.
func TestXattrsByDescriptor(t *testing.T) {
	path := t.TempDir() + "/f"
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"user.b": "two", "user.a": "", "user.large": strings.Repeat("x", 2500)} {
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			missing(t, "extended attributes in the temporary directory: "+err.Error())
		}
	}
	n, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f := n.(*file)
	o, err := f.open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	got, err := f.xattrs(context.Background(), int(o.fd.Load()))
	if err != nil {
		t.Fatal(err)
	}
	want, err := f.Xattrs(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) || len(got) != 3 || got[0].Name != "user.a" || len(got[2].Value) != 2500 {
		t.Errorf("by descriptor %v, by name %v", got, want)
	}
}

// TestGrowStops wants a file system that never has enough room to be an error.
func TestGrowStops(t *testing.T) {
	most := 0
	_, err := grow(make([]byte, 1024), func(p []byte) (int, error) {
		most = max(most, len(p))
		return 0, unix.ERANGE
	})
	if err != unix.E2BIG || most > 8*maxXattr {
		t.Errorf("%v after %d bytes", err, most)
	}
}

func TestParseRejectsNonsense(t *testing.T) {
	record := func(size int, name string) []byte {
		p := make([]byte, direntHeader, 64)
		p[16] = byte(size)
		return append(append(p, name...), 0, 0, 0, 0)
	}
	for _, c := range []struct {
		name string
		p    []byte
		want []string
		bad  bool
	}{
		{name: "good", p: record(24, "abc")[:24], want: []string{"abc"}},
		{name: "dots", p: record(24, "..")[:24]},
		{name: "short", p: make([]byte, 10), bad: true},
		{name: "length 0", p: record(0, "abc"), bad: true},
		{name: "length beyond", p: record(200, "abc"), bad: true},
		{name: "slash", p: record(24, "a/b")[:24], bad: true},
	} {
		var l nameList
		err := l.parse(c.p)
		var got []string
		for _, ref := range l.refs {
			got = append(got, string(l.bytes(ref)))
		}
		if (err != nil) != c.bad || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

// missing skips a test, or fails it where CUTBANK_REQUIRE says that nothing
// may be missing.
func missing(t *testing.T, what string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), "fuse") {
		t.Fatal("needs " + what)
	}
	t.Skip("SKIPPED: needs " + what)
}
