package postgresql

import (
	"archive/tar"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"app", ".", "..", "a/b", "a%2Fb", "%", "%25", ".hidden", "a b'\"", "ü"} {
		dir := dirName(name)
		if !tree.ValidName(dir) || databaseName(dir) != name {
			t.Errorf("%q is %q, and back %q", name, dir, databaseName(dir))
		}
	}
	if got := conninfo(`a'b\c host=x`); got != `dbname='a\'b\\c host=x'` {
		t.Errorf("conninfo %s", got)
	}
	if got := literal(`a'; drop x; --`); got != `'a''; drop x; --'` {
		t.Errorf("literal %s", got)
	}
	if got := literal(`a\'`); got != `E'a\\'''` {
		t.Errorf("literal %s", got)
	}
}

func TestWithoutSecrets(t *testing.T) {
	toc := ";\n; Archive\n;\n215; 1259 16390 TABLE public things rep\n3344; 1417 16400 USER MAPPING - USER MAPPING rep SERVER there postgres\n" +
		"3345; 6100 16401 SUBSCRIPTION - sub postgres\n216; 1259 16391 TABLE public USER MAPPING rep\n"
	want := ";\n; Archive\n;\n215; 1259 16390 TABLE public things rep\n216; 1259 16391 TABLE public USER MAPPING rep\n"
	if got := withoutSecrets(toc); got != want {
		t.Errorf("got %q", got)
	}
}

func TestOptions(t *testing.T) {
	open := func(args string, env map[string]string) (*System, error) {
		f := flag.NewFlagSet("postgresql", flag.ContinueOnError)
		f.SetOutput(io.Discard)
		o := flags(f)
		if err := f.Parse(strings.Fields(args)); err != nil {
			return nil, err
		}
		s, err := o(func(name string) string { return env[name] })
		if err != nil {
			return nil, err
		}
		return s.(*System), nil
	}
	s, err := open("-h x --port 5 -U u -w -T /a=/b -j 3", map[string]string{"PGDATABASE": "d", "PGDATA": "/data"})
	if err != nil || s.database != "d" || s.dataDir != "/data" || s.mappings["/a"] != "/b" || s.jobs != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	if env := strings.Join(s.tools.Env, " "); !strings.Contains(env, "PGHOST=x") || !strings.Contains(env, "PGPORT=5") || !strings.Contains(env, "PGUSER=u") {
		t.Errorf("environment %q", env)
	}
	if s, err := open("", nil); err != nil || s.database != "postgres" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, args := range []string{"-d host=x", "-d postgres://u:secret@h/d", "-T a=b", "-j 0", "-W"} {
		if _, err := open(args, nil); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// archive writes an archive as pg_basebackup does.
func archive(t *testing.T, name string, members ...tar.Header) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, h := range members {
		h.ModTime, h.Uid, h.Gid = time.Unix(1e9, 0), 70, 71
		if h.Typeflag == 0 {
			h.Typeflag, h.Mode = tar.TypeReg, 0o600
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(strings.Repeat(h.Name[:1], int(h.Size)))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestArchives(t *testing.T) {
	dir := t.TempDir()
	sub := func(name string) tar.Header { return tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o700} }
	archive(t, filepath.Join(dir, "base.tar"), tar.Header{Name: "PG_VERSION", Size: 3}, sub("global"), tar.Header{Name: "global/pg_control", Size: 8192},
		tar.Header{Name: "base/1/2", Size: 3 * 8192}, sub("pg_tblspc"), tar.Header{Name: "pg_tblspc/16390", Typeflag: tar.TypeSymlink, Linkname: "/x", Mode: 0o777}, sub("pg_wal"))
	archive(t, filepath.Join(dir, "16390.tar"), tar.Header{Name: "PG_15/5/6", Size: 8192})
	archive(t, filepath.Join(dir, "pg_wal.tar"), tar.Header{Name: "000000010000000000000001", Size: 16384})
	c := &capture{root: system.NewDir("", tree.Time{}), dirs: map[string]*system.Node{}, page: 8192}
	c.dirs[""] = c.root
	if err := c.read(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its manifest: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "backup_manifest"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	c = &capture{root: system.NewDir("", tree.Time{}), dirs: map[string]*system.Node{}, page: 8192}
	c.dirs[""] = c.root
	if err := c.read(dir); err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context(), false)
	if a := c.root.Attr(); a.Mode != 0o700 || a.UID != 70 || a.GID != 71 {
		t.Errorf("the root is %+v", a)
	}
	for path, extents := range map[string]int{"base/1/2": 3, "pg_tblspc/16390/PG_15/5/6": 1, "pg_wal/000000010000000000000001": 1, "PG_VERSION": 1} {
		n, err := lookup(t.Context(), c.root, strings.Split(path, "/")...)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		f, err := n.(tree.Opener).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for range f.Extents(0) {
			got++
		}
		p := make([]byte, n.Attr().Size)
		if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
			t.Errorf("%s: %v", path, err)
		}
		first := map[bool]string{true: "P", false: path[:1]}[strings.HasPrefix(path, "pg_tblspc")]
		if strings.HasPrefix(path, "pg_wal") {
			first = "0"
		}
		if got != extents || string(p) != strings.Repeat(first, len(p)) || n.Attr().Mtime.Sec != 1e9 {
			t.Errorf("%s: %d extents, want %d; begins with %.3q; %+v", path, got, extents, p, n.Attr())
		}
	}
	// Half of an archive is none.
	if err := os.Truncate(filepath.Join(dir, "base.tar"), 20000); err != nil {
		t.Fatal(err)
	}
	c2 := &capture{root: system.NewDir("", tree.Time{}), dirs: map[string]*system.Node{}, page: 8192}
	c2.dirs[""] = c2.root
	defer c2.Close(t.Context(), false)
	if err := c2.read(dir); err == nil {
		t.Error("half an archive: no error")
	}
}

func TestChoose(t *testing.T) {
	rows := [][]string{{"app"}, {"app2"}, {"postgres"}}
	for _, c := range []struct {
		data []string
		want int // -1: refused
	}{{[]string{"app"}, 1}, {[]string{"app*"}, 2}, {[]string{"app", "app*"}, 2}, {[]string{"none"}, -1}, {[]string{"["}, -1}, {nil, -1}} {
		got, err := choose(rows, system.CaptureOptions{Mode: system.Light, Data: c.data})
		if (err != nil) != (c.want < 0) || err == nil && len(got) != c.want || err != nil && !errors.Is(err, system.ErrRefused) {
			t.Errorf("%q: %v, %v", c.data, got, err)
		}
	}
}
