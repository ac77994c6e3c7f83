package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/bench/tool"
)

// A tool that does nothing, and says that all went well, must fail everywhere.
func TestIdleToolFails(t *testing.T) {
	ctx := context.Background()
	b := &bench{dir: t.TempDir(), tree: t.TempDir(), run: 1, opt: options{timeout: time.Minute}, log: io.Discard, report: func(measurement) {}}
	plant(t, b.tree, 5, 10)
	var err error
	if b.whole, err = tool.TallyDir(ctx, b.tree); err != nil {
		t.Fatal(err)
	}
	for _, name := range tool.Names {
		tl, err := tool.New(name, tool.Options{Bin: "true", Base: filepath.Join(b.dir, name), Tree: b.tree, Label: label})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(tl.Repo(), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tl.Repo(), "data"), make([]byte, 100), 0o400); err != nil {
			t.Fatal(err)
		}
		for _, s := range steps {
			if s.key == "verify" {
				continue // its exit code is all there is
			}
			p := &participant{name: name, tool: tl, snapshots: 2}
			if _, err := s.do(ctx, b, p); err == nil {
				t.Errorf("%s: %s: no error", name, s.title)
			}
		}
		left, err := os.ReadFile(filepath.Join(tl.Repo(), "data"))
		if err != nil || !bytes.Equal(left, make([]byte, 100)) {
			t.Errorf("%s: verify left the repository changed: %v, %v", name, left, err)
		}
	}
	if err := b.close(); err != nil {
		t.Error(err)
	}
}

func TestFailureEndsATool(t *testing.T) {
	var got []measurement
	b := &bench{dir: t.TempDir(), run: 1, opt: options{timeout: time.Minute}, log: io.Discard, report: func(m measurement) { got = append(got, m) }}
	tl, err := tool.New("restic", tool.Options{Bin: "false", Base: filepath.Join(b.dir, "restic"), Tree: "/tree", Label: label})
	if err != nil {
		t.Fatal(err)
	}
	p := &participant{name: "restic", tool: tl}
	for _, s := range steps {
		if err := b.step(context.Background(), s, p); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range got {
		if m.Err == "" || m.Skip != (i > 0) {
			t.Errorf("%+v: want an error first, then nothing tried", m)
		}
	}
	if len(got) != len(steps) {
		t.Errorf("%d measurements, want %d", len(got), len(steps))
	}
}

func TestStepTimeout(t *testing.T) {
	b := &bench{dir: t.TempDir(), run: 1, opt: options{timeout: 50 * time.Millisecond}, log: io.Discard, report: func(measurement) {}}
	s := step{key: "walk", do: func(ctx context.Context, _ *bench, _ *participant) (tool.Usage, error) {
		return tool.Command{Args: []string{"sleep", "60"}}.Run(ctx, nil)
	}}
	if err := b.step(context.Background(), s, &participant{name: disk}); err != nil {
		t.Fatal(err)
	}
	if m := b.found[0]; !strings.Contains(m.Err, "-timeout") {
		t.Errorf("%+v: want an error that names the flag", m)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.step(ctx, s, &participant{name: disk}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v of a bench that is interrupted", err)
	}
}

func TestFlags(t *testing.T) {
	for _, args := range []string{"-runs 0", "-change 1.5", "-tools none", "-tools cutbank,cutbank", "-timeout -1s", "stray", "-files -1", "-no-such-flag"} {
		if _, err := parse(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("%s: no error", args)
		}
	}
	for _, c := range []struct {
		args         string
		files, bytes int64
	}{
		{"-tools cutbank", 60_000, 1_500_000_000},
		{"-tools cutbank -quick", 2_000, 50_000_000},
		{"-tools cutbank -quick -files 5", 5, 50_000_000},
		{"-tools cutbank -tree /x", unlimited, unlimited},
		{"-tools cutbank -tree /x -bytes 7", unlimited, 7},
	} {
		opt, err := parse(strings.Fields(c.args), io.Discard)
		if err != nil || opt.files != c.files || opt.bytes != c.bytes || !slices.Equal(opt.tools, []string{"cutbank"}) {
			t.Errorf("%s: got %+v, %v", c.args, opt, err)
		}
	}
}

// TestQuick is the whole program on a small tree, with cutbank alone.
func TestQuick(t *testing.T) {
	if os.Getenv("CUTBANK_SLOW") == "" {
		t.Skip("LEFT OUT: builds cutbank and runs every step: CUTBANK_SLOW=1 runs it")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		const missing = "/dev/fuse and root are missing: nothing can be mounted"
		if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), "fuse") {
			t.Fatal(missing)
		}
		t.Skip("SKIPPED: " + missing)
	}
	tmp := t.TempDir()
	var stdout, stderr bytes.Buffer
	code := tool.Run(context.Background(), "versus", parse, compare, []string{"-quick", "-tools", "cutbank", "-json", "-tmp", tmp}, &stdout, &stderr)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr.String())
	}
	seen := map[string]measurement{}
	for line := range bytes.Lines(stdout.Bytes()) {
		var m measurement
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if m.Type == "measurement" && m.Tool == "cutbank" {
			seen[m.Step] = m
		}
	}
	for _, s := range steps {
		m, ok := seen[s.key]
		switch {
		case !ok || m.Err != "":
			t.Errorf("%s: %+v", s.title, m)
		case m.Peak < 1<<20 || s.snapshot && m.Repo < 1<<20 || s.key != "umount" && m.Wall <= 0:
			t.Errorf("%s: implausible: %+v", s.title, m)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
