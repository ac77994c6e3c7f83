package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// shelf is a kind that only the tests' program has: a file with lines of KEY=VALUE,
// whose view has a file for each key.
var shelf = system.Kind{
	Name: "shelf", Short: "a file of keys and values, for tests", Help: "A file.", Restores: "lines are added",
	Modes: []system.Mode{system.Full, system.Dataless}, Selective: true,
	Env: []system.Variable{{Name: "SHELF", Short: "the file"}},
	Flags: func(f *flag.FlagSet) system.Opener {
		s := &shelfSystem{}
		f.StringVar(&s.file, "file", "", "the `file`")
		f.StringVar(&s.cluster, "cluster", "c1", "what it calls itself")
		f.StringVar(&s.fail, "fail", "", "where to fail: finish or close")
		return func(getenv func(string) string) (system.System, error) {
			if s.file == "" {
				s.file = getenv("SHELF")
			}
			if s.file == "" {
				return nil, errors.New("name the file with -file or SHELF")
			}
			return s, nil
		}
	},
	View: shelfView,
}

type shelfSystem struct{ file, cluster, fail string }

type shelfCapture struct {
	s     *shelfSystem
	root  *system.Node
	state string
}

func (s *shelfSystem) Capture(_ context.Context, opt system.CaptureOptions) (system.Capture, error) {
	p, err := os.ReadFile(s.file)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(opt.Scratch, "used"), p, 0o600); err != nil {
		return nil, err
	}
	mtime := tree.Time{Sec: 1e9}
	root := system.NewDir("", mtime)
	root.Add(system.NewFile("all", mtime, strings.NewReader(string(p)), int64(len(p)), nil))
	return &shelfCapture{s, root, filepath.Join(opt.State, "shelf")}, root.Seal()
}

func (c *shelfCapture) Root() tree.Node { return c.root }

func (c *shelfCapture) Finish(context.Context) (system.Info, error) {
	if c.s.fail == "finish" {
		return system.Info{}, fmt.Errorf("half of the shelf is gone: %w", system.ErrIncomplete)
	}
	return system.Info{Kind: "shelf", Version: "1.0", Cluster: c.s.cluster, Facts: map[string]string{"wood": "oak"}}, nil
}

func (c *shelfCapture) Close(ctx context.Context, kept bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.s.fail == "close" {
		return errors.New("the shelf is still open")
	}
	return os.WriteFile(c.state, fmt.Appendf(nil, "kept %v\n", kept), 0o600)
}

func (s *shelfSystem) Restore(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	if err := info.Check(system.Info{Kind: "shelf", Version: "1.0", Cluster: s.cluster}, opt); err != nil {
		return system.Result{}, err
	}
	v, err := shelfView(ctx, n.(tree.Numbered), info, system.ViewOptions{})
	if err != nil {
		return system.Result{}, err
	}
	var res system.Result
	var b strings.Builder
	for _, key := range strings.Fields("a b c") {
		f, err := v.Lookup(ctx, key)
		if err != nil || opt.Path != "" && opt.Path != key {
			continue
		}
		value := make([]byte, f.Attr().Size)
		if _, err := f.ReadAt(ctx, value, 0); err != nil {
			return res, err
		}
		opt.Stepf("%s", key)
		fmt.Fprintf(&b, "%s=%s\n", key, value)
		res.Items++
	}
	if opt.DryRun {
		return res, nil
	}
	if _, err := os.Stat(s.file); err == nil && !opt.Force {
		return res, fmt.Errorf("%s is there: --force replaces it: %w", s.file, system.ErrRefused)
	}
	return res, os.WriteFile(s.file, []byte(b.String()), 0o600)
}

func shelfView(ctx context.Context, root tree.Numbered, info system.Info, _ system.ViewOptions) (tree.Numbered, error) {
	all, err := root.Lookup(ctx, "all")
	if err != nil {
		return nil, err
	}
	p := make([]byte, all.Attr().Size)
	if n, err := all.ReadAt(ctx, p, 0); n < len(p) {
		return nil, err
	}
	v := system.NewDir("", all.Attr().Mtime)
	for line := range strings.Lines(string(p)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			return nil, fmt.Errorf("%q is no line of a shelf of %s", line, info.Facts["wood"])
		}
		v.Add(system.NewFile(key, all.Attr().Mtime, strings.NewReader(value), int64(len(value)), nil))
	}
	return v, v.Seal()
}

// TestKinds: what is said of a kind can be relied on.
func TestKinds(t *testing.T) {
	for _, k := range kinds {
		f := optionSet(k)
		if k.Flags(f) == nil || k.Short == "" || k.Help == "" || k.Restores == "" || !k.Has(system.Full) {
			t.Errorf("%s: something is missing", k.Name)
		}
		f.VisitAll(func(o *flag.Flag) {
			if o.Usage == "" {
				t.Errorf("%s: -%s has no usage", k.Name, o.Name)
			}
		})
		for line := range strings.Lines(k.Help) {
			if len(line) > 90 {
				t.Errorf("%s: a line of the help is long: %q", k.Name, line)
			}
		}
	}
}

// TestScratchLeftovers: what a killed run left is removed, what a running one has is
// not, nor what is somebody else's.
func TestScratchLeftovers(t *testing.T) {
	a := &app{stderr: os.Stderr}
	parent := t.TempDir()
	mine, done, err := a.scratchDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	left := filepath.Join(parent, scratchPrefix+"1-0")
	other := filepath.Join(parent, "other")
	for _, d := range []string{left, other} {
		if err := os.MkdirAll(d+"/sub", 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{left + ".lock", other + ".lock"} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	second, done2, err := a.scratchDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	done2()
	for path, want := range map[string]bool{mine: true, mine + ".lock": true, other: true, other + ".lock": true, left: false, left + ".lock": false, second: false, second + ".lock": false} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", path, err == nil, want)
		}
	}
	if st, err := os.Stat(mine); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
}
