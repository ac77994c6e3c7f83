package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/bench/tool"
	"github.com/cutbankfs/cutbank/test/gen"
)

// label names the snapshots of all tools.
const label = "bench"

// disk is the name of the column that reads the source itself.
const disk = "disk"

// settle is how long the tree rests between a change and a snapshot. Tools
// distrust files that changed in the last two seconds and read them again: that
// would be measured instead.
const settle = 3 * time.Second

// options are the flags.
type options struct {
	tree         string
	files, bytes int64
	change       float64
	seed         uint64
	runs         int
	tools        []string // in the order of columns; the first is the base
	cutbank      string   // a ready-made binary
	tmp          string
	timeout      time.Duration
	json, drop   bool
}

// bench is the state of all runs.
type bench struct {
	opt    options
	dir    string // everything is below
	tree   string
	whole  tool.Tally // of the tree as it is now
	bins   map[string]string
	run    int // from 1
	mounts []*tool.Mounted
	found  []measurement
	setup  setup
	report func(measurement) // is told each at once
	log    io.Writer
}

// measurement is one step of one tool in one run. It is written as JSON with
// these names.
type measurement struct {
	V     int     `json:"v"`
	Type  string  `json:"type"` // "measurement"
	Run   int     `json:"run"`
	Step  string  `json:"step"`
	Tool  string  `json:"tool"`
	Wall  float64 `json:"wall_seconds"`
	CPU   float64 `json:"cpu_seconds"`
	Peak  int64   `json:"peak_bytes"`
	Repo  int64   `json:"repo_bytes,omitempty"`  // after a snapshot
	Cache int64   `json:"cache_bytes,omitempty"` // likewise
	Err   string  `json:"error,omitempty"`       // if set, the numbers mean nothing
	Skip  bool    `json:"skipped,omitempty"`     // an earlier error is the reason
}

// setup is what was measured on.
type setup struct {
	V        int               `json:"v"`
	Type     string            `json:"type"` // "setup"
	Tree     tool.Tally        `json:"tree"`
	Change   float64           `json:"change"`
	Seed     uint64            `json:"seed"`
	Runs     int               `json:"runs"`
	Base     string            `json:"base"` // ratios are to this tool's numbers
	Cores    int               `json:"cores"`
	Kernel   string            `json:"kernel"`
	Versions map[string]string `json:"versions"`
}

func (b *bench) logf(format string, args ...any) { fmt.Fprintf(b.log, format+"\n", args...) }

// close ends what still runs and removes everything.
func (b *bench) close() error {
	var errs []error
	for _, m := range b.mounts {
		if _, err := m.End(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// prepare finds the programs and makes the tree.
func (b *bench) prepare(ctx context.Context, sources []string) error {
	for _, bin := range []string{"find", "tar"} {
		if _, err := exec.LookPath(bin); err != nil {
			return fmt.Errorf("%w: mounts are read with GNU find and tar", err)
		}
	}
	b.logf("copying %d folders, at most %d files and %d MB", len(sources), b.opt.files, b.opt.bytes/1e6)
	var err error
	if b.whole, err = copyTree(ctx, b.tree, sources, b.opt.files, b.opt.bytes); err != nil {
		return err
	}
	b.logf("the tree holds %s", b.whole)
	b.setup.Tree = b.whole
	if err := b.room(); err != nil {
		return err
	}
	return sleep(ctx, settle)
}

// room returns an error if the disk is too small for a repository of each tool,
// in the worst case, and one restore at a time.
func (b *bench) room() error {
	var st unix.Statfs_t
	if err := unix.Statfs(b.dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: b.dir, Err: err}
	}
	free, need := int64(st.Bavail)*st.Bsize, b.whole.Bytes*int64(len(b.opt.tools)+1)
	if free < need {
		return fmt.Errorf("%s has %d MB free, and %d MB may be needed: use -bytes, fewer -tools or another -tmp", b.opt.tmp, free/1e6, need/1e6)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// measure does all runs. An error is one that makes it pointless to go on; a
// tool's failure is a measurement.
func (b *bench) measure(ctx context.Context) error {
	for b.run = 1; b.run <= b.opt.runs; b.run++ {
		if err := b.measureOnce(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) measureOnce(ctx context.Context) error {
	var parts []*participant
	for _, name := range b.opt.tools {
		t, err := tool.New(name, tool.Options{Bin: b.bins[name], Base: filepath.Join(b.dir, "run", name), Tree: b.tree, Label: label})
		if err != nil {
			return err
		}
		parts = append(parts, &participant{name: name, tool: t})
	}
	parts = append(parts, &participant{name: disk})
	for i, s := range steps {
		if s.mutate {
			if err := b.mutate(ctx); err != nil {
				return err
			}
		}
		for j := range parts {
			// Nobody always goes first.
			p := parts[(j+i+b.run)%len(parts)]
			if p.tool == nil && !s.disk {
				continue
			}
			if err := b.step(ctx, s, p); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(filepath.Join(b.dir, "run"))
}

// mutate changes the tree as time does.
func (b *bench) mutate(ctx context.Context) error {
	changes, err := gen.Mutate(b.tree, b.opt.seed+uint64(b.run)-1, b.opt.change)
	if err != nil {
		return err
	}
	if b.whole, err = tool.TallyDir(ctx, b.tree); err != nil {
		return err
	}
	b.logf("run %d: changed %d files (seed %d); the tree holds %s", b.run, len(changes), b.opt.seed+uint64(b.run)-1, b.whole)
	return sleep(ctx, settle)
}

// step does one step with one participant and keeps what was measured.
func (b *bench) step(ctx context.Context, s step, p *participant) error {
	m := measurement{V: 1, Type: "measurement", Run: b.run, Step: s.key, Tool: p.name}
	u, err := tool.Usage{}, error(nil)
	if p.out != nil {
		err = fmt.Errorf("%w: an earlier step failed", errSkipped)
	} else {
		// What one tool has written must not be paid for by the next.
		syscall.Sync()
		if b.opt.drop && !s.warm {
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				return fmt.Errorf("-drop needs root: %w", err)
			}
		}
		limited, cancel := context.WithTimeoutCause(ctx, b.opt.timeout, fmt.Errorf("stopped after %v, see -timeout", b.opt.timeout))
		u, err = s.do(limited, b, p)
		cancel()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil && s.snapshot {
		m.Repo, err = treeSize(ctx, p.tool.Repo())
	}
	if err == nil && s.snapshot {
		m.Cache, err = treeSize(ctx, p.tool.Cache())
	}
	m.Wall, m.CPU, m.Peak = u.Wall.Seconds(), u.CPU.Seconds(), u.Peak
	switch {
	case err != nil:
		m.Err, m.Skip = err.Error(), errors.Is(err, errSkipped)
		b.logf("run %d: %s: %s failed: %v", b.run, s.title, p.name, err)
	case m.Wall > 0:
		b.logf("run %d: %s: %s %.2f s", b.run, s.title, p.name, m.Wall)
	}
	b.found = append(b.found, m)
	b.report(m)
	return nil
}
