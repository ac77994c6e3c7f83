package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// Restore implements system.System.
func (s *System) Restore(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	r := &s.recipe
	env := func(step string) []string {
		e := environ("CUTBANK_STEP="+step, "CUTBANK_NAME="+opt.Name, "CUTBANK_MODE="+string(opt.Mode), "CUTBANK_SCRATCH="+opt.Scratch)
		if opt.Force {
			e = append(e, "CUTBANK_FORCE=1")
		}
		return e
	}
	now := system.Info{Kind: Kind.Name}
	var err error
	if now.Version, now.Cluster, err = s.identity(ctx, env, opt.Logf, opt.Warnf); err != nil {
		return system.Result{}, err
	}
	if err := info.Check(now, opt); err != nil {
		return system.Result{}, err
	}
	command := pick(opt.Mode, r.Restore, r.RestoreLight, r.RestoreDataless)
	if info.Facts["from"] == "dir" {
		return s.restoreDir(ctx, n, command, env("restore"), opt)
	}
	if command == "" {
		option := pick(opt.Mode, "--restore", "--restore-light", "--restore-dataless")
		return system.Result{}, fmt.Errorf("the snapshot is %s: say with %s which command takes the stream: %w", opt.Mode, option, system.ErrRefused)
	}
	return restoreStream(ctx, n, info.Facts["stream"], opt, Proc{What: "the restore command", Args: Shell(command), Env: env("restore"), Timeout: time.Duration(r.Timeout), Logf: opt.Logf, Warnf: opt.Warnf})
}

// restoreStream pipes a stored file into a command.
func restoreStream(ctx context.Context, n tree.Node, name string, opt system.RestoreOptions, p Proc) (system.Result, error) {
	f, err := n.Lookup(ctx, name)
	if err != nil {
		return system.Result{}, fmt.Errorf("the snapshot does not hold the stream that its record names: %w", err)
	}
	in := Reader(ctx, f)
	res := system.Result{Items: 1, Bytes: uint64(f.Attr().Size)}
	opt.Stepf("%s, %d bytes, into the restore command", name, f.Attr().Size)
	if opt.DryRun {
		return res, nil
	}
	p.Stdin = in
	r, err := p.Start(ctx)
	if err == nil {
		err = r.Wait()
	}
	if err != nil {
		return system.Result{}, fmt.Errorf("restoring %s: %w", name, errors.Join(err, in.err))
	}
	all, err := tookAll(ctx, f, r.Took())
	if err == nil && !all {
		err = fmt.Errorf("the command ended before it had read all of it, %d of %d bytes: %w", r.Took(), f.Attr().Size, system.ErrIncomplete)
	}
	if err != nil {
		return system.Result{}, fmt.Errorf("restoring %s: %w", name, err)
	}
	return res, nil
}

// maxPadding is how many zeros at the end of a stream may stay unread: tar fills its
// last record with them, and reads no further than where they begin.
const maxPadding = 1 << 20

// tookAll reports whether a command that has read so many bytes of a file has had all
// that it says.
func tookAll(ctx context.Context, f tree.Node, took int64) (bool, error) {
	if left := f.Attr().Size - took; left > 0 && (took == 0 || left > maxPadding) {
		return false, nil
	}
	rest := Reader(ctx, f)
	rest.off = took
	p, err := io.ReadAll(rest)
	return len(bytes.Trim(p, "\x00")) == 0, err
}

// restoreDir brings a directory back.
func (s *System) restoreDir(ctx context.Context, n tree.Node, command string, env []string, opt system.RestoreOptions) (system.Result, error) {
	dir := s.recipe.Dir
	if dir == "" {
		return system.Result{}, fmt.Errorf("say with --dir where the directory goes: %w", system.ErrRefused)
	}
	if opt.Mode != system.Full {
		return system.Result{}, fmt.Errorf("a %s snapshot of a directory has not all that the system needs: `cutbank restore %s:PATH DIRECTORY` gives what it has: %w", opt.Mode, opt.Name, system.ErrRefused)
	}
	res := system.Result{}
	if t, ok := n.(tree.Totaler); ok {
		res.Items, res.Bytes = t.Totals().Files, t.Totals().Bytes
	}
	if err := MayFill(dir, opt); err != nil {
		return res, err
	}
	opt.Stepf("%d files into %s", res.Items, dir)
	if command != "" {
		opt.Stepf("then the restore command")
	}
	if opt.DryRun {
		return res, nil
	}
	if err := opt.Unpack(ctx, n, dir); err != nil {
		return system.Result{}, err
	}
	if command == "" {
		return res, nil
	}
	return res, Proc{What: "the restore command", Args: Shell(command), Env: env, Timeout: time.Duration(s.recipe.Timeout), Logf: opt.Logf, Warnf: opt.Warnf}.Run(ctx)
}

// MayFill refuses to replace what is in a directory, unless that was asked for. One
// that is missing may be filled. Where marks are given, which are globs, one that has
// something in it, but nothing that fits one of them, is not what it is taken for.
func MayFill(dir string, opt system.RestoreOptions, marks ...string) error {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(1000) // if none of so many fits, none will
	switch {
	case err != nil && err != io.EOF:
		return err
	case len(names) == 0:
		return nil
	case !opt.Force:
		return fmt.Errorf("%s is not empty: --force replaces what is there: %w", dir, system.ErrRefused)
	}
	other := ""
	for _, name := range names {
		switch {
		case slices.ContainsFunc(marks, func(mark string) bool { ok, err := filepath.Match(mark, name); return ok && err == nil }):
			marks = nil
		case name != "lost+found" && !strings.HasPrefix(name, ".cutbank-"): // which a restore that was killed has left
			other = name
		}
	}
	if len(marks) > 0 && other != "" {
		return fmt.Errorf("%s does not look like what is to be replaced: it has %q, and nothing named %s; empty it yourself if it is meant: %w", dir, other, strings.Join(marks, " or "), system.ErrRefused)
	}
	opt.Warnf("what is in %s and not in the snapshot is removed", dir)
	return nil
}

// Within reports whether a path is a directory, or lies in it; both are absolute and
// clean.
func Within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// Stored is a stored file as a stream.
type Stored struct {
	ctx context.Context
	n   tree.Node
	off int64
	err error // what could not be read, and why
}

// Reader returns the contents of a stored file, from the first byte on.
func Reader(ctx context.Context, n tree.Node) *Stored { return &Stored{ctx: ctx, n: n} }

// Read implements io.Reader.
func (r *Stored) Read(p []byte) (int, error) {
	n, err := r.n.ReadAt(r.ctx, p, r.off)
	r.off += int64(n)
	if n > 0 {
		return n, nil // an error comes again
	}
	if err == io.EOF && r.off < r.n.Attr().Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		r.err = err
	}
	return 0, err
}
