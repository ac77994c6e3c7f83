package featurebase

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// keysFile is what a node gave as the keys of a field: 7 of them, each there by its
// key and by its ID.
func keysFile(t testing.TB) []byte {
	t.Helper()
	f, err := os.Open("testdata/keys.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCheckBolt(t *testing.T) {
	whole := keysFile(t)
	sum, items, err := checkBolt(bytes.NewReader(whole), int64(len(whole)))
	if err != nil || items < 14 {
		t.Fatalf("%d items, %v", items, err)
	}
	// Another key, in place.
	other := bytes.ReplaceAll(whole, []byte("t3"), []byte("tX"))
	if got, n, err := checkBolt(bytes.NewReader(other), int64(len(other))); err != nil || n != items || got == sum {
		t.Errorf("another key: %d items, %v, the same digest: %v", n, err, got == sum)
	}
	// The other meta page alone will do, and gives what it knew.
	one := bytes.Clone(whole)
	clear(one[:100])
	if _, _, err := checkBolt(bytes.NewReader(one), int64(len(one))); err != nil {
		t.Errorf("one meta page: %v", err)
	}
	clear(one[4096:4196])
	for name, p := range map[string][]byte{"no meta pages": one, "cut by a page": whole[:len(whole)-4096], "cut by a byte": whole[:len(whole)-1], "nothing": nil, "text": []byte(disabled)} {
		if _, _, err := checkBolt(bytes.NewReader(p), int64(len(p))); !errors.Is(err, system.ErrIncomplete) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzCheckBolt(f *testing.F) {
	p := keysFile(f)
	f.Add(p, 4096+20, byte(1))
	f.Add(p[:9000], 0, byte(0))
	f.Fuzz(func(t *testing.T, p []byte, at int, x byte) {
		if at >= 0 && at < len(p) {
			p = bytes.Clone(p)
			p[at] ^= x
		}
		_, _, err := checkBolt(bytes.NewReader(p), int64(len(p)))
		if err != nil && !errors.Is(err, system.ErrIncomplete) && err != io.EOF {
			t.Fatal(err)
		}
	})
}

// shardOf returns an RBF database of some pages.
func shardOf(pages uint32) []byte {
	p := make([]byte, int(pages)*pageSize)
	copy(p, rbfMagic)
	binary.BigEndian.PutUint32(p[8:], pages)
	binary.BigEndian.PutUint32(p[20:], 1)
	binary.BigEndian.PutUint32(p[pageSize:], 1)
	return p
}

func TestCheckShard(t *testing.T) {
	wrong := shardOf(5)
	wrong[pageSize+3] = 9
	outside := shardOf(5)
	outside[23] = 5
	for _, c := range []struct {
		name string
		p    []byte
		ok   bool
	}{
		{"whole", shardOf(5), true}, {"empty", shardOf(3), true}, {"a page short", shardOf(5)[:4*pageSize], false},
		{"a byte long", append(shardOf(5), 0), false}, {"another page", wrong, false}, {"root records outside", outside, false},
		{"text", []byte("failed: no such shard"), false}, {"nothing", nil, false}, {"zeros", make([]byte, 3*pageSize), false},
	} {
		err := checkShard(bytes.NewReader(c.p), int64(len(c.p)))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, system.ErrIncomplete) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestLayout(t *testing.T) {
	for _, f := range []file{{kind: allocFile}, {kind: shardFile, index: "a", n: 3}, {kind: shardFile, index: "a", n: 123456}, {kind: dataframeFile, index: "a", n: 0},
		{kind: partitionFile, index: "a", n: 255}, {kind: fieldFile, index: "a", field: "f"}} {
		if got, ok := parseFile(f.path()); !ok || got != f {
			t.Errorf("%s: %+v, %v", f.path(), got, ok)
		}
	}
	for _, p := range []string{"schema", "indexes/a/shards/3", "indexes/a/shards/-001", "indexes/a/translate/0256", "indexes/a/other/0001", "indexes/a/fields/f/other", "x/a/shards/0001", ""} {
		if f, ok := parseFile(p); ok {
			t.Errorf("%q: %+v", p, f)
		}
	}
	for _, p := range []string{`{"indexes":[{"name":"../x"}]}`, `{"indexes":[{"name":"a"},{"name":"a"}]}`, `{"indexes":[{"name":"a","fields":[{"name":"a/b"}]}]}`, `{"indexes":[null]}`, `{`, `{"indexes":[{"name":"a","options":{"partitionN":512}}]}`} {
		if s, err := parseSchema([]byte(p)); err == nil {
			t.Errorf("%s: %+v", p, s)
		}
	}
	// What we do not know of a schema is kept.
	s, err := parseSchema([]byte(`{"indexes":[{"name":"a","new":{"x":1}},{"name":"b"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if s, err = s.only("a"); err != nil {
		t.Fatal(err)
	}
	if p, err := s.text(); err != nil || !strings.Contains(string(p), `"x": 1`) || strings.Contains(string(p), `"b"`) {
		t.Errorf("%s %v", p, err)
	}
}

// open makes a System of a command line and an environment.
func open(t *testing.T, args string, env map[string]string) (*System, error) {
	t.Helper()
	f := flag.NewFlagSet("featurebase", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	o := flags(f)
	if err := f.Parse(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	sys, err := o(func(name string) string { return env[name] })
	if err != nil {
		return nil, err
	}
	return sys.(*System), nil
}

func TestOptions(t *testing.T) {
	s, err := open(t, "--host a:1 -concurrency=3", map[string]string{"PILOSA_HOST": "b:2", "PILOSA_AUTH_TOKEN": "Bearer secret", "PILOSA_RETRY_PERIOD": "7s", "PILOSA_DIR": "/x"})
	if err != nil {
		t.Fatal(err)
	}
	if s.client.base != "http://a:1" || s.client.token != "secret" || s.client.period != 7*time.Second || s.opt.concurrency != 3 || s.opt.tokenOnLine || s.opt.dir != "" {
		t.Errorf("%+v %+v", s.opt, s.client)
	}
	if s, err = open(t, "--tls.skip-verify --host h", nil); err != nil || s.client.base != "https://h:10101" {
		t.Errorf("%v %+v", err, s)
	}
	for _, bad := range []string{"--concurrency 0", "--host http://a/b", "--host ftp://a", "--tls.ca-certificate none", "--tls.key k", "--tls.skip-verify --tls.ca-certificate c", "--retry-period -1s"} {
		if _, err := open(t, bad, nil); err == nil {
			t.Errorf("%s: taken", bad)
		}
	}
	if _, err := open(t, "", map[string]string{"PILOSA_RETRY_PERIOD": "hunter2"}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

// answering returns a client of a server, which tries again for a short time.
func answering(t *testing.T, h http.HandlerFunc) (*client, *node) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	s, err := open(t, "--retry-period 2s --host "+srv.URL, map[string]string{"PILOSA_AUTH_TOKEN": "secret"})
	if err != nil {
		t.Fatal(err)
	}
	s.started(time.Now, t.Logf)
	n := &node{State: "STARTED"}
	n.URI.Scheme, n.URI.Host = "http", "127.0.0.1"
	if _, err := fmt.Sscanf(srv.Listener.Addr().String(), "127.0.0.1:%d", &n.URI.Port); err != nil {
		t.Fatal(err)
	}
	return s.client, n
}

// TestAgain: what may pass is tried again, what will not is not, and a file that
// comes short, or with an error behind it, is no file.
func TestAgain(t *testing.T) {
	var asked atomic.Int32
	c, n := answering(t, func(w http.ResponseWriter, r *http.Request) {
		k := asked.Add(1)
		switch {
		case r.Header.Get("Authorization") != "Bearer secret":
			http.Error(w, "who?", http.StatusForbidden)
		case r.URL.Path == "/never":
			http.Error(w, "no", http.StatusNotFound)
		case r.URL.Path == "/elsewhere":
			http.Redirect(w, r, "//127.0.0.1:1/", http.StatusTemporaryRedirect)
		case r.URL.Path == "/loaded" && k == 1:
			http.Redirect(w, r, "//127.0.0.1:1/", http.StatusSeeOther)
		case r.URL.Path == "/loaded" && k == 2:
			http.Error(w, "validating api method: api method TranslateData not allowed in state DEGRADED", http.StatusNotFound)
		case r.URL.Path == "/loaded":
			w.Write(shardOf(5))
		case k == 1:
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		case k == 2:
			w.Write(shardOf(5)[:4*pageSize])
		default:
			w.Write(shardOf(5))
		}
	})
	sp, err := newSpool(t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer sp.Close()
	r := &run{client: c, spool: sp, parts: map[file]part{}}
	f := file{kind: shardFile, index: "i", n: 1}
	if err := r.fetch(context.Background(), 0, f, n.base(), "/shard", checkShard); err != nil || asked.Load() != 3 || r.part(f).size != 5*pageSize {
		t.Errorf("%v after %d answers, %d bytes", err, asked.Load(), r.part(f).size)
	}
	for _, path := range []string{"/never", "/elsewhere"} {
		asked.Store(0)
		if err := r.fetch(context.Background(), 0, f, n.base(), path, checkShard); err == nil || asked.Load() != 1 || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v after %d answers", path, err, asked.Load())
		}
	}
	asked.Store(0)
	if err := r.fetch(context.Background(), 0, f, n.base(), "/loaded", checkShard); err != nil || asked.Load() != 3 {
		t.Errorf("%v after %d answers", err, asked.Load())
	}
	if st, err := sp.files[0].Stat(); err != nil || sp.ends[0] != 10*pageSize || st.Size() < sp.ends[0] {
		t.Errorf("spool: %v, %d", err, sp.ends[0])
	}
}

// TestLost: a node that did not answer for the retry period is asked once at a time,
// until it answers.
func TestLost(t *testing.T) {
	c, n := answering(t, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("{}")) })
	gone := "http://127.0.0.1:1"
	began := time.Now()
	for range 20 {
		if _, err := c.get(context.Background(), gone, "/"); err == nil {
			t.Fatal("an answer of nobody")
		}
	}
	if d := time.Since(began); d < time.Second || d > 15*time.Second {
		t.Errorf("%s for 20 files of a node that is gone, with a retry period of 2s", d)
	}
	c.lost.Store(n.base(), true)
	if _, err := c.get(context.Background(), n.base(), "/"); err != nil {
		t.Error(err)
	}
	if _, lost := c.lost.Load(n.base()); lost {
		t.Error("a node that answers is still lost")
	}
}

// TestDir: bogus dataframes and what is no part of a backup are left out; what is
// missing is not.
func TestDir(t *testing.T) {
	dir := t.TempDir()
	put := func(path string, p []byte) {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, p, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	put("schema", []byte(`{"indexes":[{"name":"a","fields":[{"name":"f","options":{"keys":true}}]}]}`))
	put("idalloc", keysFile(t))
	put("indexes/a/shards/0000", shardOf(5))
	put("indexes/a/dataframe/0000", []byte(disabled+"\n"))
	put("lost+found", nil)
	s, err := open(t, "--dir "+dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	var warned []string
	opt := system.CaptureOptions{Mode: system.Full, Now: time.Now, Logf: t.Logf, Warnf: func(f string, a ...any) { warned = append(warned, fmt.Sprintf(f, a...)) }}
	if _, err := s.Capture(context.Background(), opt); !errors.Is(err, system.ErrIncomplete) || !strings.Contains(err.Error(), "fields/f/translate is missing") {
		t.Errorf("%v", err)
	}
	put("indexes/a/fields/f/translate", keysFile(t))
	c, err := s.Capture(context.Background(), opt)
	if err != nil {
		t.Fatal(err)
	}
	root := c.Root().(*system.Node)
	if a := root.Child("indexes").Child("a"); a.Child("dataframe") != nil || a.Child("shards").Child("0000").Attr().Size != 5*pageSize || root.Child("lost+found") != nil || !strings.Contains(strings.Join(warned, " "), "lost+found") {
		t.Errorf("%q", warned)
	}
	// Backups are often reached through a link to the newest.
	link := filepath.Join(t.TempDir(), "latest")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if s, err = open(t, "--dir "+link, nil); err != nil {
		t.Fatal(err)
	}
	if c, err = s.Capture(context.Background(), opt); err != nil || c.Root().(*system.Node).Child("indexes") == nil {
		t.Errorf("through a link: %v", err)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, "idalloc")), os.Remove(filepath.Join(dir, "indexes/a/shards/0000"))); err != nil {
		t.Fatal(err)
	}
	warned = nil
	if _, err := s.Capture(context.Background(), opt); err != nil || !strings.Contains(strings.Join(warned, " "), "no idalloc") || !strings.Contains(strings.Join(warned, " "), "has no shards") {
		t.Errorf("%v, %q", err, warned)
	}
	if err := os.Symlink("0000", filepath.Join(dir, "indexes/a/shards/0001")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Capture(context.Background(), opt); !errors.Is(err, system.ErrIncomplete) || !strings.Contains(err.Error(), "shards/0001 is no plain file") {
		t.Errorf("a shard that is a link: %v", err)
	}
}

func TestDeleting(t *testing.T) {
	for q, want := range map[string]bool{"Delete(All())": true, "Count(All()) delete (Row(f=1))": true, "DELETE FROM a WHERE x = 1": true, " drop table a": true,
		"Row(deleted=1)": false, "Set(1, delete=2)": false, "select * from deletions": false, "": false} {
		if got := deleting.MatchString(q); got != want {
			t.Errorf("%q: %v", q, got)
		}
	}
}

// TestSpace: no other node helps when scratch space is full.
func TestSpace(t *testing.T) {
	c, n := answering(t, func(w http.ResponseWriter, r *http.Request) { w.Write(shardOf(5)) })
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	// What cannot be truncated is as good as what cannot be written.
	sp := &spool{files: []*os.File{full}, ends: []int64{0}}
	c.base = n.base()
	warned := 0
	r := &run{client: c, spool: sp, parts: map[file]part{}, opt: system.CaptureOptions{Mode: system.Full, Warnf: func(string, ...any) { warned++ }}}
	err = r.shardFrom(context.Background(), 0, file{kind: shardFile, index: "i", n: 1}, []*node{n, n}, "/shard")
	if !errors.Is(err, errSpace) || warned > 0 {
		t.Errorf("%v, %d warnings", err, warned)
	}
}
