package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/bench/tool"
)

func main() { tool.Main("versus", parse, compare) }

// parse reads the flags.
func parse(args []string, stderr io.Writer) (options, error) {
	var opt options
	var tools string
	var quick bool
	f := flag.NewFlagSet("versus", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&opt.tree, "tree", "", "copy this `folder`, instead of /usr/share, libraries and the Go distribution")
	f.Int64Var(&opt.files, "files", 0, "copy at most so many files (default 60000, or all of -tree)")
	f.Int64Var(&opt.bytes, "bytes", 0, "copy at most so many bytes (default 1500000000, or all of -tree)")
	f.BoolVar(&quick, "quick", false, "2000 files, 50 MB: to see that it works")
	f.Float64Var(&opt.change, "change", 0.02, "share of the files that changes before the third snapshot")
	f.Uint64Var(&opt.seed, "seed", 1, "which files change, and how")
	f.IntVar(&opt.runs, "runs", 1, "do everything so many times and take medians")
	f.StringVar(&tools, "tools", "", "compare these, separated by commas, with the first (default: of "+strings.Join(tool.Names, ", ")+" those on the PATH)")
	f.StringVar(&opt.cutbank, "cutbank", "", "use this `binary` instead of building one")
	f.StringVar(&opt.tmp, "tmp", os.TempDir(), "work below this `folder`")
	f.DurationVar(&opt.timeout, "timeout", 30*time.Minute, "give a step up after this time")
	f.BoolVar(&opt.json, "json", false, "print JSON, an object a line")
	f.BoolVar(&opt.drop, "drop", false, "drop the kernel's caches before each step that is not a repetition; needs root")
	if err := f.Parse(args); err != nil {
		return opt, err
	}
	if f.NArg() > 0 {
		return opt, fmt.Errorf("%q is no flag; see -help", f.Arg(0))
	}
	files, bytes := int64(60_000), int64(1_500_000_000)
	switch {
	case quick:
		files, bytes = 2_000, 50_000_000
	case opt.tree != "":
		files, bytes = unlimited, unlimited
	}
	if opt.files == 0 {
		opt.files = files
	}
	if opt.bytes == 0 {
		opt.bytes = bytes
	}
	switch {
	case opt.files < 0 || opt.bytes < 0 || opt.runs < 1 || opt.timeout <= 0:
		return opt, errors.New("-files, -bytes, -runs and -timeout take positive numbers")
	case !(opt.change >= 0 && opt.change <= 1):
		return opt, errors.New("-change takes a share, from 0 to 1")
	case opt.drop && os.Geteuid() != 0:
		return opt, errors.New("-drop needs root")
	}
	var err error
	opt.tools, err = tool.Choose(tools, tool.Names)
	return opt, err
}

// compare does everything. failed tells whether the first tool failed anywhere.
func compare(ctx context.Context, opt options, stdout, stderr io.Writer) (failed bool, err error) {
	// Mount points and trees are compared by path: no links in it.
	tmp, err := filepath.EvalSymlinks(opt.tmp)
	if err == nil {
		tmp, err = filepath.Abs(tmp)
	}
	if err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp(tmp, "cutbank-versus-")
	if err != nil {
		return false, err
	}
	b := &bench{opt: opt, dir: dir, tree: filepath.Join(dir, "tree"), log: stderr, report: func(measurement) {}}
	defer func() { err = errors.Join(err, b.close()) }()
	goroot, err := b.findTools(ctx)
	if err != nil {
		return false, err
	}
	sources := []string{opt.tree}
	if opt.tree == "" {
		sources = systemDirs(goroot)
	}
	if err := b.prepare(ctx, sources); err != nil {
		return false, err
	}
	lines := json.NewEncoder(stdout)
	if opt.json {
		if err := lines.Encode(b.setup); err != nil {
			return false, err
		}
		b.report = func(m measurement) { err = errors.Join(err, lines.Encode(m)) }
	}
	if merr := b.measure(ctx); merr != nil || err != nil {
		return false, errors.Join(err, merr)
	}
	if !opt.json {
		b.writeReport(stdout)
	} else if err := b.writeSummary(lines); err != nil {
		return false, err
	}
	return slices.ContainsFunc(b.found, func(m measurement) bool { return m.Tool == opt.tools[0] && m.Err != "" }), nil
}

// writeSummary prints the cells of all tables.
func (b *bench) writeSummary(lines *json.Encoder) error {
	for _, m := range metrics {
		for _, r := range rows(b.found, m, b.columns(m)) {
			for _, c := range r.cells {
				if c.Value == 0 && !c.Failed {
					continue
				}
				if err := lines.Encode(c); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// findTools fills in binaries and versions, and returns where Go is, if it is
// anywhere. It builds cutbank from the module of the current folder.
func (b *bench) findTools(ctx context.Context) (goroot string, err error) {
	if out, err := (tool.Command{Args: []string{tool.Go(), "env", "GOROOT"}}).Output(ctx); err == nil {
		goroot = strings.TrimSpace(string(out))
	}
	b.bins = map[string]string{}
	b.setup = setup{V: 1, Type: "setup", Change: b.opt.change, Seed: b.opt.seed, Runs: b.opt.runs, Base: b.opt.tools[0], Cores: runtime.NumCPU(), Kernel: kernel(), Versions: map[string]string{}}
	for _, name := range b.opt.tools {
		given := ""
		if name == "cutbank" {
			given = b.opt.cutbank
		}
		if b.bins[name], err = tool.Find(ctx, name, given, filepath.Join(b.dir, "bin")); err != nil {
			return "", err
		}
		t, err := tool.New(name, tool.Options{Bin: b.bins[name], Base: filepath.Join(b.dir, "version", name), Tree: b.tree, Label: label})
		if err != nil {
			return "", err
		}
		if b.setup.Versions[name], err = t.About(ctx); err != nil {
			return "", err
		}
	}
	return goroot, nil
}

// kernel returns its release.
func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
