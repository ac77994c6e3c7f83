package etcd

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// database is what etcd's server sends: pages, the first of which says their size,
// and the hash.
func database(page uint32) []byte {
	p := make([]byte, 4*4096)
	binary.LittleEndian.PutUint32(p[16:], 0xED0CDAED)
	binary.LittleEndian.PutUint32(p[24:], page)
	sum := sha256.Sum256(p)
	return append(p, sum[:]...)
}

func TestCheckFile(t *testing.T) {
	flipped := database(4096)
	flipped[5000] ^= 1
	short := database(4096)
	for _, c := range []struct {
		name string
		file []byte
		page int64 // 0: an error
	}{
		{"whole", database(4096), 4096},
		{"other pages", database(16384), 16384},
		{"pages that cannot be", database(4097), 4096},
		{"no pages at all", database(0), 4096},
		{"flipped", flipped, 0},
		{"cut short by a page", short[:len(short)-4096], 0},
		{"without its hash", short[:len(short)-32], 0},
		{"empty", nil, 0},
	} {
		page, err := checkFile(bytes.NewReader(c.file), int64(len(c.file)))
		if page != c.page || (err == nil) != (c.page != 0) || err != nil && !errors.Is(err, system.ErrIncomplete) {
			t.Errorf("%s: %d, %v, want %d", c.name, page, err, c.page)
		}
	}
}

func TestOptions(t *testing.T) {
	f := flag.NewFlagSet("etcd", flag.ContinueOnError)
	open := flags(f)
	if err := f.Parse(strings.Fields("--endpoints a:1,b:2 -cacert ca --insecure-skip-tls-verify --user u --name m --mark-compacted --data-dir d")); err != nil {
		t.Fatal(err)
	}
	sys, err := open(func(name string) string { return map[string]string{"ETCDCTL_PASSWORD": "p"}[name] })
	if err != nil {
		t.Fatal(err)
	}
	s := sys.(*System)
	if got, want := strings.Join(s.tools.Env, " "), "ETCDCTL_API=3 ETCDCTL_ENDPOINTS=a:1,b:2 ETCDCTL_CACERT=ca ETCDCTL_USER=u ETCDCTL_INSECURE_SKIP_TLS_VERIFY=true"; got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
	if got := strings.Join(s.restore, " "); got != "--name=m --mark-compacted" {
		t.Errorf("restore %q", got)
	}
	m := &member{Endpoint: "b:2"}
	s.pin(m)
	if got := s.tools.Env[0]; got != "ETCDCTL_ENDPOINTS=b:2" || strings.Contains(strings.Join(s.tools.Env, " "), "a:1") || !slices.Contains(s.tools.Env, "ETCDCTL_DISCOVERY_SRV=") {
		t.Errorf("pinned: %q", s.tools.Env)
	}
	for _, args := range [][]string{{"--user", "u:secret"}, {"--user", "u"}, {"--password", "secret"}, {"--prefix", "a", "--data-dir", "d"}} {
		f = flag.NewFlagSet("etcd", flag.ContinueOnError)
		open = flags(f)
		if err := f.Parse(args); err != nil {
			t.Fatal(err)
		}
		if _, err := open(func(string) string { return "" }); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestFindKeys: of a file that etcd 3.4 has written, what its keys are; of one that is
// damaged anything, but an end.
func TestFindKeys(t *testing.T) {
	whole, err := os.ReadFile("testdata/snapshot.db")
	if err != nil {
		t.Fatal(err)
	}
	read := func(p []byte, prefixes ...string) (map[string]string, error) {
		found, err := findKeys(bytes.NewReader(p), int64(len(p)), prefixes)
		got := map[string]string{}
		for k, at := range found {
			r, err := parseRecord(p[at.off : at.off+int64(at.len)])
			if err != nil {
				return nil, err
			}
			got[k] = string(r.Value)
		}
		return got, err
	}
	for _, c := range []struct {
		prefix string
		want   map[string]string
	}{
		{"", map[string]string{"-\x00\xffb c\n": "-v\x00\xfe \"q\" \n2\u00e9", "a": "", "b": "x"}},
		{"a", map[string]string{"a": ""}},
		{"c", map[string]string{}},
	} {
		if got, err := read(whole, c.prefix); err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%q: %q, %v", c.prefix, got, err)
		}
	}
	for n := 0; n < len(whole)-sha256.Size; n += 97 {
		if _, err := read(whole[:n], ""); err == nil {
			t.Errorf("%d bytes of it: no error", n)
		}
	}
	for i := range whole {
		p := bytes.Clone(whole)
		p[i] ^= 0xff
		if _, err := read(p, ""); err != nil && !errors.Is(err, system.ErrIncomplete) && !errors.Is(err, io.EOF) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}

func TestParseRecord(t *testing.T) {
	r, err := parseRecord([]byte("\x0a\x01k\x10\x02\x18\x03\x20\x04\x2a\x02vv\x30\x96\x01\x38\x07"))
	if want := (record{[]byte("k"), []byte("vv"), 2, 3, 4, 150}); err != nil || !reflect.DeepEqual(*r, want) {
		t.Errorf("%+v, %v", r, err)
	}
	for _, p := range []string{"\x0a", "\x0a\x05k", "\x10", "\x0d\x01\x02\x03\x04", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"} {
		if _, err := parseRecord([]byte(p)); err == nil {
			t.Errorf("%q: no error", p)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for prefix, want := range map[string]string{"a": "b", "a\xff": "b", "": "", "\xff": "", "/x/": "/x0"} {
		if got := prefixEnd([]byte(prefix)); string(got) != want {
			t.Errorf("%q: %q, want %q", prefix, got, want)
		}
	}
	if got := reduce([]string{"b", "a/c", "a/", "a/", "ab"}); !slices.Equal(got, []string{"a/", "ab", "b"}) {
		t.Errorf("%q", got)
	}
	info := system.Info{Facts: map[string]string{"prefixes": `["a/","b"]`}}
	for prefix, want := range map[string]bool{"a/": true, "a/x": true, "bc": true, "a": false, "c": false, "": false} {
		if err := covered(info, []string{"b", prefix}); (err == nil) != want {
			t.Errorf("%q: %v", prefix, err)
		}
	}
}

// TestAnswers: releases of etcdctl name what they print differently. An answer that is
// missing is not one that is empty.
func TestAnswers(t *testing.T) {
	for text, want := range map[string]int{
		`{"responses":[{"Response":{"ResponseRange":{"kvs":[{"key":"YQ=="}],"count":1}}}]}`:  1,
		`{"responses":[{"Response":{"response_range":{"kvs":[{"key":"YQ=="}],"count":1}}}]}`: 1,
		`{"responses":[{"Response":{"response_range":{}}}]}`:                                 0,
		`{"responses":[{"Response":{"another":{}}}]}`:                                        -1,
		`{"responses":[]}`: -1,
		`{}`:               -1,
	} {
		var r ranged
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		pages, err := r.pages(1)
		if (err == nil) != (want >= 0) || err == nil && len(pages[0].Kvs) != want {
			t.Errorf("%s: %v, %v", text, pages, err)
		}
	}
}

// TestDirsApart: a log within the data directory, or the other way round, would be
// removed with what is replaced there.
func TestDirsApart(t *testing.T) {
	top := t.TempDir()
	for wal, apart := range map[string]bool{"/d/wal": false, "/d": false, "/d/": false, "": false, "/d/../d/x": false, "/d-wal": true, "/w/d": true} {
		s := &System{walDir: top + wal}
		err := s.mayFill(top+"/d", system.RestoreOptions{Force: true})
		if (err == nil) != apart || err != nil && !errors.Is(err, system.ErrRefused) {
			t.Errorf("%q: %v", wal, err)
		}
	}
}
