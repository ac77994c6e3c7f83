package main

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// TestImportInterrupted: what was not taken in because of Ctrl-C is not passed over.
func TestImportInterrupted(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("CUTBANK_PASSWORD", "")
	ctx, cancel := context.WithCancel(t.Context())
	interrupt := false
	k := shelf
	k.Import = func(ctx context.Context, file string, opt system.CaptureOptions) (system.Capture, time.Time, error) {
		c, err := (&shelfSystem{file: "testdata/modes.txtar", cluster: file}).Capture(ctx, opt)
		if interrupt {
			cancel()
		}
		return c, time.Unix(1e9, 0), err
	}
	before := kinds
	kinds = slices.Insert(slices.Clone(kinds), 0, &k)
	t.Cleanup(func() { kinds = before })
	var out bytes.Buffer
	do := func(want int, args string) {
		t.Helper()
		out.Reset()
		if code := run(ctx, strings.Fields(args+" -r "+dir+"/repo --cache-dir "+dir+"/cache"), strings.NewReader(""), &out, &out); code != want {
			t.Fatalf("%s: exit code %d, want %d: %s", args, code, want, &out)
		}
	}
	do(0, "init --no-password")
	do(0, "import shelf --name x one")
	interrupt = true
	do(130, "import shelf --name x one two")
	if !strings.Contains(out.String(), "one: is x/") {
		t.Errorf("%s", &out)
	}
}
