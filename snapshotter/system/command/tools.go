package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// Tools are the programs of a system, and what they are run with.
type Tools struct {
	Dirs []string // where they are looked for before PATH; globs, of which the last fit counts
	Env  []string // NAME=VALUE that counts instead of what this process has
	Logf func(format string, a ...any)
}

// Find returns the path of the first program there is.
func (t *Tools) Find(names ...string) (string, error) {
	for _, name := range names {
		for _, dir := range t.Dirs {
			found, err := filepath.Glob(filepath.Join(dir, name))
			if err == nil && len(found) > 0 {
				slices.SortFunc(found, byNumber)
				return found[len(found)-1], nil
			}
		}
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no %s on this machine: %w", strings.Join(names, " or "), exec.ErrNotFound)
}

// byNumber sorts paths of which parts are numbers, as versions are.
func byNumber(a, b string) int {
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	for i := range min(len(x), len(y)) {
		n, nerr := strconv.ParseFloat(x[i], 64)
		m, merr := strconv.ParseFloat(y[i], 64)
		if nerr == nil && merr == nil && n != m {
			return cmp.Compare(n, m)
		}
	}
	return strings.Compare(a, b)
}

// Proc is a program with its environment; names are tried in turn.
func (t *Tools) Proc(args []string, names ...string) (Proc, error) {
	path, err := t.Find(names...)
	if err != nil {
		return Proc{}, err
	}
	env := slices.DeleteFunc(Environ(), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.ContainsFunc(t.Env, func(o string) bool { return strings.HasPrefix(o, name+"=") })
	})
	return Proc{What: filepath.Base(path), Args: append([]string{path}, args...), Env: append(env, t.Env...), Logf: t.Logf}, nil
}

// Run runs a program to its end.
func (t *Tools) Run(ctx context.Context, name string, args ...string) error {
	p, err := t.Proc(args, name)
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// Ask runs a program for at most a minute and returns what it prints.
func (t *Tools) Ask(ctx context.Context, name string, args ...string) (string, error) {
	p, err := t.Proc(args, name)
	if err != nil {
		return "", err
	}
	p.Timeout = time.Minute
	return p.Output(ctx)
}

// To runs a program whose output becomes a file.
func (t *Tools) To(ctx context.Context, file, name string, args ...string) error {
	p, err := t.Proc(args, name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	p.Stdout = f
	return errors.Join(p.Run(ctx), f.Close())
}

// Owner is who restored files shall belong to: the user (or user:group) that was
// named, or who has the directory already; ok is false if nobody is meant.
func Owner(name, dir string) (uid, gid int, ok bool, err error) {
	if name != "" {
		who, group, both := strings.Cut(name, ":")
		u, err := user.Lookup(who)
		if err != nil {
			return 0, 0, false, err
		}
		id := u.Gid
		if both {
			g, err := user.LookupGroup(group)
			if err != nil {
				return 0, 0, false, err
			}
			id = g.Gid
		}
		uid, _ = strconv.Atoi(u.Uid) // on Linux they are numbers
		gid, _ = strconv.Atoi(id)
		return uid, gid, true, nil
	}
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, err
	}
	own := st.Sys().(*syscall.Stat_t)
	return int(own.Uid), int(own.Gid), true, nil
}

// Chown gives a directory and all below it away. Links are not followed.
func Chown(dir string, uid, gid int) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
}

// Unstore writes a stored file's contents into a new file.
func Unstore(ctx context.Context, from *Stored, file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, ctx.Err(), f.Close())
}

// Major returns the first n numbers of a version, which is what must be equal for one
// release to read what another has written.
func Major(version string, n int) string {
	parts := strings.Split(version, ".")
	return strings.Join(parts[:min(n, len(parts))], ".")
}

// CheckRelease is system.Info.Check for systems of which the first n numbers of a
// version count.
func CheckRelease(i, now system.Info, n int, opt system.RestoreOptions) error {
	i.Version, now.Version = Major(i.Version, n), Major(now.Version, n)
	return i.Check(now, opt)
}
