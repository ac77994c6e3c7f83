package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/bench/tool"
)

func main() { tool.Main("remote", parse, compare) }

// parse reads the flags.
func parse(args []string, stderr io.Writer) (options, error) {
	var opt options
	var tools string
	var quick bool
	f := flag.NewFlagSet("remote", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.DurationVar(&opt.latency, "latency", 30*time.Millisecond, "add this to each request")
	f.IntVar(&opt.files, "files", 0, "so many small files (default 10000)")
	f.Int64Var(&opt.bigBytes, "big", 0, "so many bytes in big files (default 1000000000)")
	f.IntVar(&opt.bigFiles, "big-files", 8, "so many big files")
	f.BoolVar(&quick, "quick", false, "300 files, 20 MB, a short history: to see that it works")
	f.IntVar(&opt.history, "history", 20, "make so many more snapshots before the mount")
	f.DurationVar(&opt.idle, "idle", time.Minute, "leave the mount alone for so long")
	f.Uint64Var(&opt.seed, "seed", 1, "what is in the files")
	f.StringVar(&tools, "tools", "", "compare these, separated by commas, with the first (default: of "+strings.Join(tool.Remote, ", ")+" those on the PATH)")
	f.StringVar(&opt.cutbank, "cutbank", "", "use this `binary` instead of building one")
	f.StringVar(&opt.server, "server", "", "use the bucket of this `URL`, s3+http://HOST:PORT/BUCKET, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; what is put below cutbank/, restic/ and kopia/ stays there")
	f.StringVar(&opt.gateway, "gateway", "", "start this versitygw `binary` (default: of the PATH, or that of make test-services)")
	f.StringVar(&opt.trace, "trace", "", "write each request to this `file`, an object of JSON a line")
	f.StringVar(&opt.tmp, "tmp", os.TempDir(), "work below this `folder`")
	f.DurationVar(&opt.timeout, "timeout", 30*time.Minute, "give a step up after this time")
	f.BoolVar(&opt.json, "json", false, "print JSON, an object a line")
	if err := f.Parse(args); err != nil {
		return opt, err
	}
	if f.NArg() > 0 {
		return opt, fmt.Errorf("%q is no flag; see -help", f.Arg(0))
	}
	files, bytes := 10_000, int64(1_000_000_000)
	if quick {
		files, bytes, opt.history, opt.idle = 300, 20_000_000, min(opt.history, 2), min(opt.idle, 5*time.Second)
	}
	if opt.files == 0 {
		opt.files = files
	}
	if opt.bigBytes == 0 {
		opt.bigBytes = bytes
	}
	// Two files far from each other are read one by one.
	if opt.files < 3 || opt.files > 100_000 || opt.bigBytes < 1 || opt.bigFiles < 1 || opt.history < 1 || opt.latency < 0 || opt.idle <= 0 || opt.timeout <= 0 {
		return opt, errors.New("-files takes 3 to 100000, -big, -big-files, -history, -idle and -timeout take positive numbers, and -latency no negative one")
	}
	var err error
	opt.tools, err = tool.Choose(tools, tool.Remote)
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
	dir, err := os.MkdirTemp(tmp, "cutbank-remote-")
	if err != nil {
		return false, err
	}
	b := &bench{opt: opt, dir: dir, log: stderr, report: func(measurement) {}}
	// The trace is written by the proxies, which close ends.
	endTrace := func() error { return nil }
	defer func() { err = errors.Join(err, b.close(), endTrace()) }()
	if opt.trace != "" {
		f, err := os.Create(opt.trace)
		if err != nil {
			return false, err
		}
		w := bufio.NewWriter(f)
		b.trace = &trace{w: w, start: time.Now(), step: map[string]string{}}
		endTrace = func() error {
			b.trace.mu.Lock()
			defer b.trace.mu.Unlock()
			return errors.Join(b.trace.err, w.Flush(), f.Close())
		}
	}
	if err := b.prepare(ctx); err != nil {
		return false, err
	}
	var lines error
	if opt.json {
		enc := json.NewEncoder(stdout)
		lines = enc.Encode(b.setup)
		b.report = func(m measurement) { lines = errors.Join(lines, enc.Encode(m)) }
	}
	if err := b.measure(ctx); err != nil {
		return false, err
	}
	b.addUp()
	if !opt.json {
		b.writeReport(stdout)
	}
	return slices.ContainsFunc(b.found, func(m measurement) bool { return m.Tool == opt.tools[0] && m.Err != "" }), lines
}
