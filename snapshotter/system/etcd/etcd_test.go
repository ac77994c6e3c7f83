package etcd

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
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
	if err := f.Parse(strings.Fields("--endpoints a:1,b:2 -cacert ca --user u --name m --data-dir d")); err != nil {
		t.Fatal(err)
	}
	sys, err := open(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := sys.(*System)
	if got, want := strings.Join(s.tools.Env, " "), "ETCDCTL_API=3 ETCDCTL_ENDPOINTS=a:1,b:2 ETCDCTL_CACERT=ca ETCDCTL_USER=u"; got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
	if got := strings.Join(s.restore, " "); got != "--name=m" {
		t.Errorf("restore %q", got)
	}
	m := &member{Endpoint: "b:2"}
	s.pin(m)
	if got := s.tools.Env[0]; got != "ETCDCTL_ENDPOINTS=b:2" || strings.Contains(strings.Join(s.tools.Env, " "), "a:1") {
		t.Errorf("pinned: %q", s.tools.Env)
	}
	f = flag.NewFlagSet("etcd", flag.ContinueOnError)
	open = flags(f)
	if err := f.Parse([]string{"--user", "u:secret"}); err != nil {
		t.Fatal(err)
	}
	if _, err := open(nil); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a password on the command line: %v", err)
	}
}
