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
	"github.com/cutbankfs/cutbank/snapshotter/source"
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

func TestLists(t *testing.T) {
	toc := ";\n; Archive\n;\n215; 1259 16390 TABLE public things rep\n3344; 1417 16400 USER MAPPING - USER MAPPING rep SERVER there postgres\n" +
		"3345; 6100 16401 SUBSCRIPTION - sub postgres\n3346; 0 0 COMMENT - SUBSCRIPTION sub postgres\n216; 1259 16391 TABLE public USER MAPPING rep\n" +
		"3347; 1262 16402 DATABASE - app rep\n3348; 0 0 ACL - DATABASE app rep\n3349; 0 0 ACL - SCHEMA DATABASE rep"
	for name, c := range map[string]struct {
		want func(string) bool
		text string
	}{
		"without secrets": {noSecret, ";\n; Archive\n;\n215; 1259 16390 TABLE public things rep\n216; 1259 16391 TABLE public USER MAPPING rep\n" +
			"3347; 1262 16402 DATABASE - app rep\n3348; 0 0 ACL - DATABASE app rep\n3349; 0 0 ACL - SCHEMA DATABASE rep"},
		"of the database": {ofDatabase, ";\n; Archive\n;\n3347; 1262 16402 DATABASE - app rep\n3348; 0 0 ACL - DATABASE app rep\n"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/all", []byte(toc), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := filterList(dir+"/all", dir+"/list", c.want); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(dir + "/list"); err != nil || string(got) != c.text {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

// TestForeignTablespace: what a snapshot alone names is not replaced, forced or not.
func TestForeignTablespace(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"data/pg_tblspc", "mine/PG_15", "other/PG_15", "etc/passwd", "empty"} {
		if err := os.MkdirAll(dir+"/"+d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(dir+"/mine", dir+"/data/pg_tblspc/1"); err != nil {
		t.Fatal(err)
	}
	opt := system.RestoreOptions{Force: true, Warnf: t.Logf}
	for name, want := range map[string]bool{"mine": true, "other": false, "etc": false, "empty": true, "missing": true} {
		s := &System{}
		if err := s.mayFillSpaces(dir+"/data", map[string]string{"1": dir + "/" + name}, opt); (err == nil) != want || err != nil && !errors.Is(err, system.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := &System{mappings: mappings{"/x": dir + "/other"}}
	if err := s.mayFillSpaces(dir+"/data", map[string]string{"1": dir + "/other"}, opt); err != nil {
		t.Errorf("one that was named: %v", err)
	}
}

// TestHostileSpaces: a snapshot does not choose both a place and the file that is put there.
func TestHostileSpaces(t *testing.T) {
	for name, c := range map[string]struct {
		has    string
		spaces map[string]string
		want   error
	}{
		"as servers have them":  {"PG_15_202209061", map[string]string{"1": "/a", "2": "/b"}, nil},
		"within the directory":  {"PG_15_202209061", map[string]string{"1": "/data/ts"}, nil},
		"a file of its own":     {"x.conf", map[string]string{"1": "/etc/x.d"}, system.ErrRefused},
		"a file with that name": {"PG_x.conf", map[string]string{"1": "/etc/x.d"}, system.ErrRefused},
		"a directory":           {"cron.d", map[string]string{"1": "/etc"}, system.ErrRefused},
		"none":                  {"PG_15", map[string]string{"3": "/a"}, fs.ErrNotExist},
		"two in one place":      {"PG_15", map[string]string{"1": "/a", "2": "/a"}, system.ErrRefused},
		"above the directory":   {"PG_15", map[string]string{"1": "/"}, system.ErrRefused},
		"the directory":         {"PG_15", map[string]string{"1": "/data"}, system.ErrRefused},
	} {
		root, tblspc := system.NewDir("", tree.Time{}), system.NewDir("pg_tblspc", tree.Time{})
		root.Add(tblspc)
		for _, oid := range []string{"1", "2"} {
			d := system.NewDir(oid, tree.Time{})
			d.Add(system.NewDir(c.has, tree.Time{}))
			if strings.HasSuffix(c.has, ".conf") {
				d = system.NewDir(oid, tree.Time{})
				d.Add(system.NewFile(c.has, tree.Time{}, strings.NewReader("x"), 1, nil))
			}
			tblspc.Add(d)
		}
		if err := root.Seal(); err != nil {
			t.Fatal(err)
		}
		if err := checkSpaces(t.Context(), root, "/data", c.spaces); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRestricted: nothing that somebody has put into a schema ends the restriction.
func TestRestricted(t *testing.T) {
	dir := t.TempDir()
	bin := dir + "/psql"
	if err := os.WriteFile(bin, []byte("#!/bin/sh\nfor f; do :; done\nexec cat \"$f\" >"+dir+"/got\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := &System{}
	s.tools.Dirs = []string{dir}
	text := "\\restrict a\nselect 1;\n\\unrestrict b\n\\unrestrict a\n\\restrict c\n\\! ls\n"
	if err := os.WriteFile(dir+"/in", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.psql(t.Context(), "d", dir+"/in"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dir + "/got")
	first, rest, _ := strings.Cut(string(got), "\n")
	key, ok := strings.CutPrefix(first, `\restrict `)
	if err != nil || !ok || len(key) < 20 || strings.Contains(text, key) || rest != "select 1;\n\\unrestrict b\n\\restrict c\n\\! ls\n" {
		t.Errorf("%q, %v", got, err)
	}
	if left, err := filepath.Glob(dir + "/in.*"); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
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

// TestMayReplace: a database is never replaced by one of which there is no data.
func TestMayReplace(t *testing.T) {
	all := system.NewDir("databases", tree.Time{})
	for name, files := range map[string][]string{"app": {"toc.dat", "3344.dat"}, "inv": {"toc.dat"}, "los": {"toc.dat", "blob_16390.dat", "blobs.toc"}, "a%2Fb": {"schema.sql"}} {
		d := system.NewDir(name, tree.Time{})
		for _, f := range files {
			d.Add(system.NewFile(f, tree.Time{}, strings.NewReader(""), 0, nil))
		}
		all.Add(d)
	}
	if err := all.Seal(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"app": true, "inv": false, "los": true, "a%2Fb": false} {
		if got, err := hasData(t.Context(), all.Child(name)); err != nil || got != want {
			t.Errorf("%s has data: %v, %v", name, got, err)
		}
	}
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(dir+"/3344.dat", nil, 0o600), os.Symlink("/etc/passwd", dir+"/3345.dat")); err != nil {
		t.Fatal(err)
	}
	linked, err := source.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hasData(t.Context(), linked); !errors.Is(err, system.ErrRefused) {
		t.Errorf("one with a link: %v", err)
	}
	s := &System{database: "postgres"}
	for _, c := range []struct {
		targets []target
		force   bool
		want    string // empty: not refused
	}{
		{[]target{{"inv", full, false}}, true, "of database inv, which is not empty, this light snapshot has structure only"},
		{[]target{{"inv", full, false}}, true, "(this one has data of app, los, and databases/NAME restores"},
		{[]target{{"app", full, true}, {"a/b", full, false}, {"inv", full, false}}, true, "of databases a/b, inv, which are"},
		{[]target{{"app", full, true}, {"inv", full, false}}, false, "of database inv, "}, // not: --force drops it
		{[]target{{"app", full, true}}, false, "database app is not empty: --force drops it first"},
		{[]target{{"postgres", full, true}}, true, "in use by this restore itself"},
		{[]target{{"inv", missing, false}, {"a/b", empty, false}, {"app", empty, true}}, false, ""},
	} {
		err := s.mayReplace(t.Context(), all, c.targets, system.RestoreOptions{Mode: system.Light, Force: c.force})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%v: %v", c.targets, err)
		case c.want != "" && (!errors.Is(err, system.ErrRefused) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%v: %v, want %q", c.targets, err, c.want)
		}
	}
	if got := enumerate(make([]string, 25)); !strings.HasSuffix(got, " and 5 more") {
		t.Errorf("25 names: %q", got)
	}
}

func TestChoose(t *testing.T) {
	rows := [][]string{{"app"}, {"app2"}, {"postgres"}}
	for _, c := range []struct {
		data []string
		want int // -1: refused
	}{{[]string{"app"}, 1}, {[]string{"app*"}, 2}, {[]string{"app", "app*"}, 2}, {[]string{"postgres", "p*"}, 1}, {[]string{"none"}, -1}, {[]string{"["}, -1}, {nil, -1}} {
		got, err := choose(rows, system.CaptureOptions{Mode: system.Light, Data: c.data})
		if (err != nil) != (c.want < 0) || err == nil && len(got) != c.want || err != nil && !errors.Is(err, system.ErrRefused) {
			t.Errorf("%q: %v, %v", c.data, got, err)
		}
	}
}
