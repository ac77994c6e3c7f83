package consul

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// many are records of all sorts.
func many(t testing.TB) []byte {
	list := []entry{
		{kindRegister, map[string]any{"Node": "n1", "Datacenter": "dc1", "NodeMeta": map[string]any{"note": "hush"}}},
		{kindRegister, map[string]any{"Node": "n1", "Service": map[string]any{"Service": "web", "ID": "web/1", "Port": int64(80), "Meta": map[string]any{"ID": "hush"}}}},
		{kindRegister, map[string]any{"Node": "n1", "Check": map[string]any{"CheckID": "c", "Output": "hush", "Definition": map[string]any{"Header": map[string]any{"Authorization": []any{"hush"}}}}}},
		{kindRegister, map[string]any{"Node": "far", "PeerName": "dc9"}},
		{kindCoordinate, []any{map[string]any{"Node": "n1", "Segment": "", "Coord": map[string]any{"Height": 0.5}}}},
		{kindToken, map[string]any{"AccessorID": "acc", "SecretID": "hush", "Local": true}},
		{kindPolicy, map[string]any{"Name": "p", "Rules": "acl = \"write\""}},
		{kindCAState, map[string]any{"ID": "ca", "PrivateKey": "hush"}},
		{kindConfig, msgp.AppendString(nil, "\xacproxy-configx"[:13]+string(encode(t, map[string]any{"Entry": map[string]any{"Kind": "proxy-config", "Name": "global", "Config": map[string]any{"x": "hush"}}})))},
		{kindPeerSecrets, msgp.AppendString(nil, "\x0a\x04hush")},
		{99, map[string]any{"Name": "x", "What": "hush"}},
		{kindQuery, map[string]any{"ID": "1", "Name": "same"}}, {kindQuery, map[string]any{"ID": "2", "Name": "same", "Token": "hush"}},
		kv("a", "hush", "Flags", uint64(7), "Session", "s"), kv("a/b", "below"), kv("big", strings.Repeat("0123456789", 30000)), kv("empty", ""), kv("x", "mine", "Namespace", "team"),
	}
	return state(t, list...)
}

// captured makes a snapshot of a state, through an agent.
func captured(t *testing.T, mode system.Mode, data []string, archive []byte) *system.Node {
	t.Helper()
	server := httptest.NewServer(&agent{t: t, archive: archive})
	t.Cleanup(server.Close)
	s, err := openSystem(t, map[string]string{"CONSUL_HTTP_ADDR": server.URL})
	if err != nil {
		t.Fatal(err)
	}
	opt := capturing(t)
	opt.Mode, opt.Data = mode, data
	c, err := s.Capture(context.Background(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background(), true) })
	return c.Root().(*system.Node)
}

func archiveOf(t testing.TB, p []byte) []byte {
	m := fmt.Sprintf(`{"Version":1,"ID":"2-340-1795244068292","Index":340,"Term":2,"Size":%d}`+"\n", len(p))
	return pack(t, []member{{"meta.json", m}, {"state.bin", string(p)}, {"SHA256SUMS", sums(m, string(p))}}, "", "")
}

// files lists a tree: paths, with contents up to a length, or why there are none.
func files(t *testing.T, n tree.Node) map[string]string {
	t.Helper()
	all := map[string]string{}
	var walk func(n tree.Node, p string)
	walk = func(n tree.Node, p string) {
		for c, err := range n.Entries(context.Background(), 0) {
			if err != nil {
				t.Fatal(err)
			}
			path := p + c.Attr().Name
			if c.Attr().Kind == tree.Dir {
				walk(c, path+"/")
				continue
			}
			b := make([]byte, c.Attr().Size+1)
			m, err := c.ReadAt(context.Background(), b, 0)
			switch {
			case errors.Is(err, syscall.ENODATA):
				all[path] = fmt.Sprintf("ENODATA %d", c.Attr().Size)
			case err != io.EOF || int64(m) != c.Attr().Size:
				t.Errorf("%s: %d bytes of %d, %v", path, m, c.Attr().Size, err)
			default:
				all[path] = string(b[:m])
			}
		}
	}
	walk(n, "")
	return all
}

func seen(t *testing.T, root *system.Node, secrets bool) (map[string]string, tree.Numbered) {
	t.Helper()
	v, err := View(context.Background(), root, system.Info{}, system.ViewOptions{Secrets: secrets})
	if err != nil {
		t.Fatal(err)
	}
	return files(t, v), v
}

func TestView(t *testing.T) {
	archive := archiveOf(t, many(t))
	root := captured(t, system.Full, nil, archive)
	all, v := seen(t, root, false)
	for path, want := range map[string]string{
		"kv/a%": "hush", "kv/a/b": "below", "kv/empty": "", "kv/big": strings.Repeat("0123456789", 30000), "namespaces/team/kv/x": "mine",
		"consul.snap": string(archive), "state.bin": string(many(t)),
		"acl/tokens/acc.json": "{\n  \"AccessorID\": \"acc\",\n  \"Local\": true,\n  \"SecretID\": \"(masked)\"\n}\n",
	} {
		if got, ok := all[path]; !ok || got != want {
			t.Errorf("%s: %.200q, want %.200q", path, got, want)
		}
	}
	for _, path := range []string{"services/web/n1/web%2F1.json", "nodes/n1/node.json", "nodes/n1/checks/c.json", "nodes/n1/coordinate.json", "peers/dc9/nodes/far/node.json",
		"acl/policies/p.json", "config/proxy-config/global.json", "queries/same.json", "queries/same%-2.json", "other/Unknown(99)/x.json", "inspect.txt", "meta.json", "SHA256SUMS"} {
		if _, ok := all[path]; !ok {
			t.Errorf("no %s", path)
		}
	}
	if _, ok := all[againFile]; ok {
		t.Errorf("%s is shown", againFile)
	}
	for path, text := range all {
		if strings.HasPrefix(path, "other/PeeringSecret/") && text != masked+"\n" || path == "other/ConnectCAProviderState/ca.json" && strings.Contains(text, "hush") {
			t.Errorf("%s: %q", path, text)
		}
	}
	bare, _ := seen(t, root, true)
	if !strings.Contains(bare["acl/tokens/acc.json"], "hush") || !strings.Contains(bare["other/ConnectCAProviderState/ca.json"], "hush") {
		t.Error("secrets are masked though asked for")
	}
	d, err := v.Lookup(context.Background(), "kv")
	if err != nil {
		t.Fatal(err)
	}
	k, err := d.Lookup(context.Background(), "a%")
	if err != nil {
		t.Fatal(err)
	}
	xs, err := k.Xattrs(context.Background())
	var text []string
	for _, x := range xs {
		text = append(text, x.Name+"="+string(x.Value))
	}
	if got := strings.Join(text, " "); err != nil || got != "user.consul.create_index=3 user.consul.flags=7 user.consul.key=a user.consul.lock_index=0 user.consul.modify_index=4 user.consul.session=s" {
		t.Errorf("%s, %v", got, err)
	}
}

// TestViewOtherOrder: records that differ by the order of their maps are equal.
func TestViewOtherOrder(t *testing.T) {
	one := msgp.AppendMapHeader(nil, 2)
	two := bytes.Clone(one)
	ab := [][]byte{append(msgp.AppendString(nil, "AccessorID"), msgp.AppendString(nil, "x")...), append(msgp.AppendString(nil, "Local"), 0xc3)}
	one = append(append(one, ab[0]...), ab[1]...)
	two = append(append(two, ab[1]...), ab[0]...)
	a, _ := seen(t, captured(t, system.Full, nil, archiveOf(t, state(t, entry{kindToken, one}))), false)
	b, _ := seen(t, captured(t, system.Full, nil, archiveOf(t, state(t, entry{kindToken, two}))), false)
	if a["state.bin"] == b["state.bin"] || a["acl/tokens/x.json"] != b["acl/tokens/x.json"] {
		t.Errorf("%q, %q", a["acl/tokens/x.json"], b["acl/tokens/x.json"])
	}
}

// TestRawArchive: what cannot be written again is kept as it came.
func TestRawArchive(t *testing.T) {
	p := many(t)
	m := fmt.Sprintf(`{"Version":1,"ID":"2-340-1795244068292","Index":340,"Term":2,"Size":%d}`+"\n", len(p))
	archive := pack(t, []member{{"state.bin", string(p)}, {"meta.json", m}, {"SHA256SUMS", sums(m, string(p))}}, "", "")
	root := captured(t, system.Full, nil, archive)
	if stored := files(t, root); stored[archiveFile] != string(archive) || !strings.Contains(stored[againFile], `"regenerates":false`) {
		t.Errorf("stored: %d bytes of archive, %s", len(stored[archiveFile]), stored[againFile])
	}
	if all, _ := seen(t, root, false); all[archiveFile] != string(archive) || all["kv/a/b"] != "below" {
		t.Errorf("seen: %d bytes of archive", len(all[archiveFile]))
	}
}

// TestReadAnywhere: an archive that is written again can be read in any order.
func TestReadAnywhere(t *testing.T) {
	const seed = 3
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	value := make([]byte, 9<<20)
	for i := range value {
		value[i] = byte(rnd.Uint32())
	}
	archive := archiveOf(t, state(t, kv("k", string(value))))
	v, err := View(context.Background(), captured(t, system.Full, nil, archive), system.Info{}, system.ViewOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := v.Lookup(context.Background(), archiveFile)
	if err != nil {
		t.Fatal(err)
	}
	read := func(off, n int) {
		p := make([]byte, n)
		m, err := f.ReadAt(context.Background(), p, int64(off))
		if want := archive[off:min(off+n, len(archive))]; !bytes.Equal(p[:m], want) || (m < n) != (err == io.EOF) {
			t.Fatalf("%d bytes at %d: %d, %v", n, off, m, err)
		}
	}
	for _, off := range []int{0, 1 << 20, 1<<20 - 100000, 8 << 20, len(archive) - 1, len(archive) - 10, 0, 5 << 20} {
		read(off, 200000)
	}
	for range 10 {
		read(rnd.IntN(len(archive)), 1+rnd.IntN(300000))
	}
}

func TestModes(t *testing.T) {
	archive := archiveOf(t, many(t))
	root := captured(t, system.Light, []string{"a/", "e"}, archive)
	all, _ := seen(t, root, true)
	for path, want := range map[string]string{"kv/a%": "ENODATA 4", "kv/a/b": "below", "kv/empty": "", "kv/big": "ENODATA 300000"} {
		if got, ok := all[path]; !ok || got != want {
			t.Errorf("light: %s: %.100q, want %q", path, got, want)
		}
	}
	if !strings.Contains(all["acl/tokens/acc.json"], "hush") || all["state.bin"]+all["consul.snap"]+all["archive.json"] != "" {
		t.Error("light: no secret, or a whole state")
	}
	root = captured(t, system.Dataless, nil, archive)
	for path, text := range files(t, root) {
		if strings.Contains(text, "hush") || strings.Contains(text, "below") {
			t.Errorf("dataless: %s gives something away: %q", path, text)
		}
	}
	all, _ = seen(t, root, true)
	for path, want := range map[string]string{"kv/a%": "ENODATA 4", "kv/a/b": "ENODATA 5", "acl/policies/p.json": "{\n  \"Name\": \"p\",\n  \"Rules\": \"acl = \\\"write\\\"\"\n}\n",
		"acl/tokens/acc.json": "{\n  \"AccessorID\": \"acc\",\n  \"Local\": true,\n  \"SecretID\": \"(left out: 4 bytes)\"\n}\n"} {
		if got, ok := all[path]; !ok || got != want {
			t.Errorf("dataless: %s: %.100q, want %q", path, got, want)
		}
	}
	if _, ok := all["services/web/n1/web%2F1.json"]; !ok {
		t.Error("dataless: no services")
	}
	for _, mode := range []system.Mode{system.Light, system.Dataless} {
		s, err := openSystem(t, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Restore(context.Background(), root, system.Info{Kind: "consul"}, system.RestoreOptions{Mode: mode}); !errors.Is(err, system.ErrRefused) {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// TestFrozen: what version 1 of records.bin and archive.json was stays readable.
func TestFrozen(t *testing.T) {
	for _, name := range []string{"light", "dataless", "full"} {
		dir := filepath.Join("testdata", "frozen", name)
		if os.Getenv("CUTBANK_FREEZE") != "" {
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s is there: a frozen sample is never made again", dir)
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for path, text := range files(t, captured(t, system.Mode(name), []string{"a/"}, archiveOf(t, many(t)))) {
				if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		root := system.NewDir("", tree.Time{})
		for _, e := range entries {
			p, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			root.Add(system.NewFile(e.Name(), tree.Time{}, bytes.NewReader(p), int64(len(p)), nil))
		}
		if err := root.Seal(); err != nil {
			t.Fatal(err)
		}
		all, _ := seen(t, root, false)
		want := map[string]string{"light": "ENODATA 4 below", "dataless": "ENODATA 4 ENODATA 5", "full": "hush below"}[name]
		if got := all["kv/a%"] + " " + all["kv/a/b"]; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		if name == "full" && all[archiveFile] != string(archiveOf(t, many(t))) {
			t.Error("the archive is another: this program's gzip compresses otherwise than the one that took it")
		}
	}
}

// TestReadBeginning: what is begun to be written again, and forgotten, ends.
func TestReadBeginning(t *testing.T) {
	value := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(value)
	root := captured(t, system.Full, nil, archiveOf(t, state(t, kv("k", string(value)))))
	before := runtime.NumGoroutine()
	for range 20 {
		v, err := View(context.Background(), root, system.Info{}, system.ViewOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f, err := v.Lookup(context.Background(), archiveFile)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(context.Background(), make([]byte, 10), 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		runtime.GC()
		if runtime.NumGoroutine() <= before+1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}
