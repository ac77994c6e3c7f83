package main

import (
	"archive/tar"
	"bytes"
	"compress/flate"
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

func TestTreesAreSeeded(t *testing.T) {
	ctx := context.Background()
	var all [3]contents
	for i, seed := range []uint64{7, 7, 8} {
		dir := filepath.Join(t.TempDir(), "tree")
		w := newWriter(seed)
		s, err := w.smallFiles(ctx, filepath.Join(dir, "small"), 205)
		if err != nil {
			t.Fatal(err)
		}
		b, err := w.bigFiles(ctx, filepath.Join(dir, "big"), 3, 5_000_000)
		if err != nil {
			t.Fatal(err)
		}
		if s.whole.Files != 205 || s.whole.Dirs != 4 || s.whole.Bytes < 205*smallest || s.whole.Bytes > 205*largest || len(s.some) != 2 {
			t.Errorf("small files: %v, %v", s.whole, s.some)
		}
		if b.whole.Files != 3 || b.whole.Bytes != 5_000_000 {
			t.Errorf("big files: %v", b.whole)
		}
		read, err := readDir(ctx, s.dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := read.want(s.holds); err != nil {
			t.Error(err)
		}
		all[i] = s.holds
	}
	if err := all[1].want(all[0]); err != nil {
		t.Errorf("the same seed: %v", err)
	}
	if err := all[2].want(all[0]); err == nil {
		t.Error("another seed, and the same tree")
	}
}

func TestHalfIsCompressible(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if _, err := newWriter(1).file(context.Background(), name, 1<<20+1<<19); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if share := float64(out.Len()) / float64(len(p)); share < 0.45 || share > 0.65 {
		t.Errorf("compressed to %.2f", share)
	}
}

func TestContentsDiffer(t *testing.T) {
	a, b := [32]byte{1}, [32]byte{2}
	whole := contents{"x": a, "y": b}
	for _, c := range []struct {
		got  contents
		fail string
	}{
		{contents{"x": a, "y": b}, ""},
		{contents{"x": a, "y": a}, "other bytes in y"},
		{contents{"x": a}, "lacks y"},
		{contents{"x": a, "y": b, "z": b}, "holds 3 files; the source has 2"},
		{contents{"x": a, "z": b}, "lacks y"},
	} {
		err := c.got.want(whole)
		if (err == nil) != (c.fail == "") || err != nil && !strings.Contains(err.Error(), c.fail) {
			t.Errorf("%v: %v, want %q", c.got, err, c.fail)
		}
	}
}

func TestReadTar(t *testing.T) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []*tar.Header{{Name: "./", Typeflag: tar.TypeDir}, {Name: "./d/f", Typeflag: tar.TypeReg, Size: 3000}} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := readTar(bytes.NewReader(out.Bytes()))
	if _, ok := got["d/f"]; err != nil || len(got) != 1 || !ok {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := readTar(bytes.NewReader(out.Bytes()[:2000])); err == nil {
		t.Error("cut off, and no error")
	}
}

// lazy is a bench whose tools do nothing, and whose server is not there.
func lazy(t *testing.T, bin, name string) (*bench, *participant) {
	t.Helper()
	ctx := context.Background()
	b := &bench{dir: t.TempDir(), opt: options{timeout: time.Minute, history: 2, idle: time.Second, tools: []string{name}}, log: io.Discard, report: func(measurement) {}}
	w := newWriter(1)
	var err error
	if b.trees[small], err = w.smallFiles(ctx, filepath.Join(b.dir, "small"), 5); err != nil {
		t.Fatal(err)
	}
	if b.trees[big], err = w.bigFiles(ctx, filepath.Join(b.dir, "big"), 1, 1000); err != nil {
		t.Fatal(err)
	}
	p := &participant{name: name}
	if p.proxy, err = startProxy(name, "127.0.0.1:1", 0, nil); err != nil {
		t.Fatal(err)
	}
	b.parts = append(b.parts, p)
	for i := range p.tools {
		opt := tool.Options{Bin: bin, Base: filepath.Join(b.dir, name), Tree: b.trees[i].dir, Label: labels[i], At: &tool.Bucket{Host: p.proxy.host, Name: "b"}}
		if p.tools[i], err = tool.New(name, opt); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	})
	return b, p
}

// A tool that does nothing, and says that all went well, must fail everywhere.
func TestIdleToolFails(t *testing.T) {
	for _, name := range tool.Remote {
		b, p := lazy(t, "true", name)
		for _, s := range steps[1:] { // of init only the exit code is known
			if _, err := b.try(context.Background(), s, p); err == nil {
				t.Errorf("%s: %s: no error", name, s.title)
			}
			p.out = nil
		}
	}
}

func TestFailureEndsATool(t *testing.T) {
	b, _ := lazy(t, "false", "restic")
	if err := b.measure(context.Background()); err != nil {
		t.Fatal(err)
	}
	for i, m := range b.found {
		if m.Err == "" || m.Skip != (i > 0) {
			t.Errorf("%+v: want an error first, then nothing tried", m)
		}
	}
	if len(b.found) != len(steps) {
		t.Errorf("%d measurements, want %d", len(b.found), len(steps))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.measure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v of a bench that is interrupted", err)
	}
}

func TestReport(t *testing.T) {
	b := &bench{opt: options{tools: []string{"cutbank", "restic"}}, report: func(measurement) {}}
	b.setup.Versions = map[string]string{}
	for i, key := range []string{"mount", "ls", "walk", "tar"} {
		for j, name := range b.opt.tools {
			n := (i + 1) * (1 + 9*j)
			b.found = append(b.found, measurement{Step: key, Tool: name, Wall: float64(n), traffic: traffic{Requests: n, Kinds: map[string]int{"GET": n}, Down: 1e6}})
		}
	}
	b.found = append(b.found, measurement{Step: "one", Tool: "cutbank", traffic: traffic{Requests: 1}}, measurement{Step: "one", Tool: "restic", Err: "it broke"})
	b.addUp()
	if m, _ := b.find("mount-all", "restic"); m.Requests != 100 || m.Kinds["GET"] != 100 || m.Wall != 100 || m.Down != 4e6 || m.Type != "sum" {
		t.Errorf("the sum is %+v", m)
	}
	if m, ok := b.find("mount-all-again", "cutbank"); !ok || m.Err == "" {
		t.Errorf("the sum of what was not measured is %+v", m)
	}
	var out strings.Builder
	b.writeReport(&out)
	rows := map[string][]string{}
	for text := range strings.Lines(out.String()) {
		if len(text) > titleWidth {
			rows[strings.TrimSpace(text[:titleWidth])] = strings.Fields(text[titleWidth:])
		}
	}
	for title, want := range map[string]string{
		"mount, ls, find, tar": "10 4.00 10.00 100 10.00x 4.00 100.00 10.00x",
		"one small file":       "1 0.00 0.00 failed",
		"the same, warm":       "failed failed",
	} {
		if got := strings.Join(rows[title], " "); got != want {
			t.Errorf("%s: got %q, want %q in\n%s", title, got, want, &out)
		}
	}
	if !strings.Contains(out.String(), "failed: one, restic: it broke") {
		t.Errorf("the reason is missing in\n%s", &out)
	}
}

func TestFlags(t *testing.T) {
	for _, args := range []string{"-files 2", "-files 100001", "-big -1", "-big-files 0", "-latency -1s", "-history 0", "-idle 0", "-timeout 0", "-tools borg", "-tools cutbank,cutbank", "stray", "-no-such-flag"} {
		if _, err := parse(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("%s: no error", args)
		}
	}
	opt, err := parse(strings.Fields("-tools cutbank -quick -files 5"), io.Discard)
	if err != nil || opt.files != 5 || opt.bigBytes != 20_000_000 || opt.latency != 30*time.Millisecond || !slices.Equal(opt.tools, []string{"cutbank"}) {
		t.Errorf("got %+v, %v", opt, err)
	}
}

func TestParseServer(t *testing.T) {
	env := map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}
	got, err := parseServer("s3+http://127.0.0.1:7070/test", func(k string) string { return env[k] })
	if want := (tool.Bucket{Host: "127.0.0.1:7070", Name: "test", Region: "us-east-1", Access: "a", Secret: "s"}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"s3+https://h:1/b", "s3://b", "s3+http://h/b", "s3+http://h:1", "s3+http://h:1/b/prefix", "/folder", "s3+http://h:x/b"} {
		if _, err := parseServer(bad, func(k string) string { return env[k] }); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	if _, err := parseServer("s3+http://127.0.0.1:7070/test", func(string) string { return "" }); err == nil {
		t.Error("no credentials, and no error")
	}
}

// TestQuick is the whole program on small trees, with cutbank alone.
func TestQuick(t *testing.T) {
	if os.Getenv("CUTBANK_SLOW") == "" {
		t.Skip("LEFT OUT: builds cutbank and runs every step: CUTBANK_SLOW=1 runs it")
	}
	required := strings.Split(os.Getenv("CUTBANK_REQUIRE"), ",")
	skip := func(what, why string) {
		if slices.Contains(required, what) {
			t.Fatal(why)
		}
		t.Skip("SKIPPED: " + why)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		skip("fuse", "/dev/fuse and root are missing: nothing can be mounted")
	}
	if _, err := findGateway(""); err != nil {
		skip("gateway", err.Error())
	}
	tmp := t.TempDir()
	trace := filepath.Join(t.TempDir(), "trace")
	var stdout, stderr bytes.Buffer
	args := []string{"-files", "150", "-big", "3000000", "-big-files", "2", "-latency", "2ms", "-history", "2", "-idle", "1s", "-tools", "cutbank", "-json", "-tmp", tmp, "-trace", trace}
	if code := tool.Run(context.Background(), "remote", parse, compare, args, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr.String())
	}
	seen, requests := map[string]measurement{}, 0
	for text := range bytes.Lines(stdout.Bytes()) {
		var m measurement
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if m.Type == "measurement" {
			requests += m.Requests
		}
		seen[m.Step] = m
	}
	for _, s := range steps {
		m, ok := seen[s.key]
		local := slices.Contains([]string{"ls", "walk", "ls-again", "walk-again", "tar-again", "idle", "one", "one-more"}, s.key)
		if !ok || m.Err != "" || m.Wall <= 0 || m.Requests == 0 && !local {
			t.Errorf("%s: %+v", s.title, m)
		}
	}
	if all := seen["mount-all"]; all.Down < 150*smallest/2 {
		t.Errorf("tar has read less than there is: %+v", all)
	}
	traced, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(traced, []byte("\n")); n < requests {
		t.Errorf("%d requests traced of %d counted", n, requests)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
