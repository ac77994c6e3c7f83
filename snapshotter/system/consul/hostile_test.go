package consul

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/tinylib/msgp/msgp"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// TestFewBytesMuchMemory: a record that is an array of nothing, of which a gzip archive
// needs one byte in a thousand, costs no hundreds of its length.
func TestFewBytesMuchMemory(t *testing.T) {
	const n = 16 << 20
	array := append(binary.BigEndian.AppendUint32([]byte{0xdd}, n), bytes.Repeat([]byte{0xc0}, n)...)
	flags := append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "Flags"), array...)
	for name, list := range map[string][]entry{
		"array": {{kindSession, array}}, "in a config entry": {{kindConfig, msgp.AppendBytes(nil, append([]byte("\xa1x"), array...))}}, "flags": {{kindKVS, flags}},
	} {
		t.Run(name, func(t *testing.T) {
			p := state(t, list...)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			v := &view{ctx: context.Background(), root: system.NewDir("", tree.Time{}), dirs: map[string]*system.Node{}}
			err := v.records(bytes.NewReader(p), maxShown)
			runtime.ReadMemStats(&after)
			if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 160 {
				t.Errorf("%d MiB for %d, %v", got, len(p)>>20, err)
			}
			if (err != nil) != (name == "flags") {
				t.Error(err)
			}
		})
	}
	v := &view{ctx: context.Background(), root: system.NewDir("", tree.Time{}), dirs: map[string]*system.Node{}}
	if err := v.records(bytes.NewReader(state(t, kv("a", ""), kv("b", ""), kv("c", ""))), 2); err == nil || !strings.Contains(err.Error(), "more than 2 records") {
		t.Error(err)
	}
}

// TestNamesOfMany: records of one name are all there, whatever others are called.
func TestNamesOfMany(t *testing.T) {
	list := []entry{{kindQuery, map[string]any{"Name": "same%", "ID": "x"}}}
	for i := range 40 {
		list = append(list, entry{kindQuery, map[string]any{"Name": "same", "ID": fmt.Sprint(i)}})
	}
	all, _ := seen(t, captured(t, system.Full, nil, archiveOf(t, state(t, list...))), false)
	n := 0
	for path := range all {
		if strings.HasPrefix(path, "queries/") {
			n++
		}
	}
	if n != len(list) {
		t.Errorf("%d files of %d records", n, len(list))
	}
}

// TestMasks: what opens doors is not shown, wherever it stands; what does not, is.
func TestMasks(t *testing.T) {
	list := []entry{
		{kindRegister, map[string]any{"Node": "n", "Check": map[string]any{"CheckID": "c", "Definition": map[string]any{"HTTP": "https://user:hush@h:1/x",
			"Header": map[string]any{"Proxy-Authorization": []any{"hush"}, "X-Api-Key": []any{"hush"}, "Cookie": []any{"hush"}, "X-Vault-Token": []any{"hush"}}}}}},
		{kindRegister, map[string]any{"Node": "n", "Service": map[string]any{"Service": "s", "Meta": map[string]any{"db_passwd": "hush", "access-key": "hush"}}}},
		{kindCAConfig, map[string]any{"Provider": "vault", "Config": map[string]any{"Token": "hush", "PrivateKeyType": "shown", "AuthMethod": map[string]any{"Params": map[string]any{"secret_id": "hush"}}}}},
		{kindChunking, map[string]any{"ChunkMap": map[string]any{"1": []any{"hush"}}}},
		{77, msgp.AppendBytes(nil, []byte("hush"))},
		{kindPeering, msgp.AppendBytes(nil, []byte("shown"))},
		{kindConfig, msgp.AppendBytes(nil, []byte("\xc1hush"))},
		{kindConfig, msgp.AppendBytes(nil, append(msgp.AppendString(nil, "mesh"), encode(t, map[string]any{"Entry": map[string]any{"Kind": "mesh", "url": "http://h/user:shown@"}})...))},
	}
	root := captured(t, system.Full, nil, archiveOf(t, state(t, list...)))
	masked, _ := seen(t, root, false)
	bare, _ := seen(t, root, true)
	shown := 0
	for path, text := range masked {
		if path == stateFile || path == archiveFile {
			continue
		}
		if strings.Contains(text, "hush") {
			t.Errorf("%s: %s", path, text)
		}
		shown += strings.Count(text, "shown")
	}
	if shown != 3 {
		t.Errorf("%d texts are shown, want 3", shown)
	}
	hushed := 0
	for path, text := range bare {
		if path != stateFile && path != archiveFile {
			hushed += strings.Count(text, "hush")
		}
	}
	if hushed < 10 {
		t.Errorf("%d secrets where they are asked for", hushed)
	}
}

// TestDatalessTags: tags are values, often of proxies, and have passwords in them.
func TestDatalessTags(t *testing.T) {
	p := state(t, entry{kindRegister, map[string]any{"Node": "n", "Service": map[string]any{"Service": "s", "Tags": []any{"auth=admin:hush"}}}},
		entry{kindQuery, map[string]any{"Name": "q", "Service": map[string]any{"Service": "s", "Tags": []any{"hush"}}}},
		kv("k", "hush", "Note", "hush"))
	for path, text := range files(t, captured(t, system.Dataless, nil, archiveOf(t, p))) {
		if strings.Contains(text, "hush") {
			t.Errorf("%s: %q", path, text)
		}
	}
}

func TestWays(t *testing.T) {
	long := int64(512 << 10)
	for _, c := range []struct {
		key  string
		size int64
		want way
	}{
		{"a/b", 300, byTxn}, {"/a", 0, byTxn}, {"a//..\x01\u00a0", 9, byTxn}, {"a/b", long, byPath}, {"a/", long, byPath}, {"\xff/x", 1, byPath},
		{"/a", long, noWay}, {"a//b", long, noWay}, {"a/../b", long, noWay}, {"a\u00a0", long, noWay}, {"\xff\x01", 1, noWay}, {"\xff//", 1, noWay},
		{"a", 392900, byTxn}, {"a", 393216, byPath},
	} {
		w := wanted{item: item{key: c.key, size: c.size}}
		if got, err := w.ways(); got != c.want || err != nil {
			t.Errorf("%q of %d bytes: %d, %v, want %d", c.key, c.size, got, err, c.want)
		}
	}
}

// TestBarredKeys: a key that no agent takes is said, and hinders no other.
func TestBarredKeys(t *testing.T) {
	var txn, asked int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/txn":
			txn++
		case "/v1/kv/":
			asked++
			http.NotFound(w, r)
		default:
			http.Error(w, "what?", http.StatusForbidden)
		}
	}))
	defer server.Close()
	s, err := openSystem(t, map[string]string{"CONSUL_HTTP_ADDR": server.URL})
	if err != nil {
		t.Fatal(err)
	}
	root := captured(t, system.Full, nil, archiveOf(t, state(t, kv("\xff\x01", "x"), kv("a", "x"), kv("z", "x"))))
	opt := system.RestoreOptions{Mode: system.Full, Path: "kv", Stepf: t.Logf, Logf: t.Logf, Warnf: t.Logf}
	_, err = s.Restore(context.Background(), root, system.Info{Kind: "consul"}, opt)
	if !errors.Is(err, system.ErrIncomplete) || !strings.Contains(err.Error(), `2 keys are written, but 1 keys cannot be written by themselves, such as "\xff\x01"`) || txn != 1 || asked != 1 {
		t.Errorf("%v, %d, %d", err, txn, asked)
	}
}

// TestTxnErrors: why a transaction was not done is said in words.
func TestTxnErrors(t *testing.T) {
	for text, want := range map[string]error{
		`{"Errors":[{"What":"failed to set key \"a\", index is stale"},{"What":"x"}]}`:                               system.ErrRefused,
		`{"Errors":[{"What":"Permission denied: token with AccessorID 'x' lacks permission 'key:write' on \"a\""}]}`: fs.ErrPermission,
		`{"Errors":[]}`: io.EOF, `{`: io.EOF,
	} {
		if err := txnError(text, io.EOF); !errors.Is(err, want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
