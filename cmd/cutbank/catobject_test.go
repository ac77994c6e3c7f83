package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func TestSecretsAreMasked(t *testing.T) {
	for _, c := range []struct {
		kind       seal.Kind
		body, want string
	}{
		{seal.KindConfig, `{"v":1,"repo":"ab","splitter":{"kind":"rabin","avg":65536,"secret":"SECRET","salt":"SECRET"},"pepper":"SECRET"}`,
			`{"pepper":"(secret, not shown)","repo":"ab","splitter":{"avg":65536,"kind":"rabin","salt":"(secret, not shown)","secret":"(secret, not shown)"},"v":1}`},
		{seal.KindKey, `{"v":1,"id":"ab","kdf":"none","ring":{"chunk":"SECRET"},"salt":"SECRET"}`,
			`{"id":"ab","kdf":"none","ring":"(secret, not shown)","salt":"(secret, not shown)","v":1}`},
		{seal.KindIntent, `{"v":1,"beat":12345678901234567890}`, `{"beat":12345678901234567890,"v":1}`},
		{seal.KindParity, "\x01\x02", `"2 bytes"`},
	} {
		v, err := maskedBody(c.kind, []byte(c.body))
		if err != nil {
			t.Errorf("%c: %v", c.kind, err)
			continue
		}
		p, err := json.Marshal(v)
		if err != nil || string(p) != c.want || strings.Contains(string(p), "SECRET") {
			t.Errorf("%c: %s, %v", c.kind, p, err)
		}
	}
	for _, bad := range []string{"", "[", `"ring"`, "[1]"} {
		if _, err := maskedBody(seal.KindKey, []byte(bad)); !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestObjectNames(t *testing.T) {
	for name, want := range map[string]bool{
		"config/1": true, "keys/ab": true, "intents/ab.3": true, "packs/ab/abcd": true, "page:ab": true, "chunk:ab": true,
		"config/": false, "config": false, "etc/passwd": false, "keys/../../etc/passwd": false, "latest": false, "web/latest": false, "page:": false, "latest:/x": false,
	} {
		if got := isObjectName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestObjectFlags(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags objectFlags
		frame bool
		ok    bool
	}{
		{"packs/ab/x", objectFlags{frame: -1}, false, true},
		{"packs/ab/x", objectFlags{header: true, frame: -1}, false, true},
		{"packs/ab/x", objectFlags{frame: 2, raw: true}, true, true},
		{"packs/ab/x", objectFlags{frame: -1, raw: true}, false, false},
		{"packs/ab/x", objectFlags{frame: -2}, true, false},
		{"page:ab", objectFlags{raw: true}, false, true},
		{"page:ab", objectFlags{trailer: true}, false, false},
		{"snapshots/ab", objectFlags{raw: true}, false, true},
		{"keys/ab", objectFlags{raw: true}, false, false},
		{"config/1", objectFlags{raw: true}, false, false},
		{"config/1", objectFlags{}, true, false},
	} {
		if err := c.flags.check(c.name, c.frame); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
