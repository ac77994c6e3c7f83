package main

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

func TestModeText(t *testing.T) {
	for _, c := range []struct {
		kind tree.Kind
		mode uint32
		want string
	}{
		{tree.File, 0o644, "-rw-r--r--"},
		{tree.Dir, 0o1777, "drwxrwxrwt"},
		{tree.Dir, 0o1776, "drwxrwxrwT"},
		{tree.File, 0o4755, "-rwsr-xr-x"},
		{tree.File, 0o4644, "-rwSr--r--"},
		{tree.File, 0o2755, "-rwxr-sr-x"},
		{tree.File, 0o2745, "-rwxr-Sr-x"},
		{tree.Symlink, 0o777, "lrwxrwxrwx"},
		{tree.FIFO, 0, "p---------"},
		{tree.Socket, 0, "s---------"},
		{tree.CharDevice, 0, "c---------"},
		{tree.BlockDevice, 0, "b---------"},
		{99, 0, "?---------"},
	} {
		if got := modeText(&tree.Attr{Kind: c.kind, Mode: c.mode}); got != c.want {
			t.Errorf("%v %o: %s, want %s", c.kind, c.mode, got, c.want)
		}
	}
}

func TestLongLine(t *testing.T) {
	old := tree.Time{Sec: -1, Nsec: 5}
	for _, c := range []struct {
		at   tree.Attr
		want string
	}{
		{tree.Attr{Kind: tree.File, Mode: 0o600, Nlink: 2, UID: 5, GID: 6, Size: 7, Allocated: 4096, Mtime: old},
			"-rw-------   2     5     6            7 1969-12-31 23:59:59Z /f"},
		{tree.Attr{Kind: tree.File, Nlink: 1, Size: 1 << 20, Changed: true},
			"----------   1     0     0      1048576 1970-01-01 00:00:00Z /f [sparse] [changed]"},
		{tree.Attr{Kind: tree.Symlink, Mode: 0o777, Nlink: 1, Size: 3, Target: "a\nb"},
			`lrwxrwxrwx   1     0     0            3 1970-01-01 00:00:00Z /f -> "a\nb"`},
		{tree.Attr{Kind: tree.BlockDevice, Nlink: 1, Rdev: unix.Mkdev(259, 300000)},
			"b---------   1     0     0   259,300000 1970-01-01 00:00:00Z /f"},
	} {
		if got := longLine("/f", &c.at); got != c.want {
			t.Errorf("\ngot  %s\nwant %s", got, c.want)
		}
	}
}

func TestTopPaths(t *testing.T) {
	for _, c := range []struct {
		in   []repo.Path
		want []string
	}{
		{nil, nil},
		{[]repo.Path{"/"}, []string{""}},
		{[]repo.Path{"/", "/etc"}, []string{""}},
		{[]repo.Path{"/etc", "/etc-old", "/etc/nginx"}, []string{"etc", "etc-old"}},
	} {
		if got := topPaths(c.in); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestFailuresKeepTheFirstCause(t *testing.T) {
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs, json: true}
	var f failures
	if f.err() != nil {
		t.Error("an error of nothing")
	}
	f.add(a, "/x\n", &fs.PathError{Op: "readdir", Path: "x", Err: chunk.ErrCorrupt})
	f.add(a, "/y", &fs.PathError{Op: "open", Path: "/y", Err: syscall.EACCES})
	if err := f.err(); !errors.Is(err, chunk.ErrCorrupt) || !strings.HasPrefix(err.Error(), "2 paths") {
		t.Errorf("%v", err)
	}
	const want = "cutbank: \"/x\\n\": data is damaged\ncutbank: /y: open /y: permission denied\n"
	if errs.String() != want || strings.Count(out.String(), `"type":"problem"`) != 2 {
		t.Errorf("%s\n%s", errs.String(), out.String())
	}
}

func TestBufferedTellsOfWhatCannotBeWritten(t *testing.T) {
	full := errors.New("no space left")
	a := &app{stdout: writerFunc(func([]byte) (int, error) { return 0, full })}
	err := a.buffered(func() error {
		a.printf("a line\n")
		return nil
	})
	if !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
