package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/command"
)

// Restore implements system.System.
func (s *System) Restore(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	s.tools.Logf = opt.Logf
	switch {
	case opt.Mode == system.Dataless:
		return system.Result{}, fmt.Errorf("a dataless snapshot has no values: a full or light one can be restored: %w", system.ErrRefused)
	case opt.Mode == system.Light && s.dataDir+s.walDir != "":
		return system.Result{}, fmt.Errorf("a light snapshot makes no member: its keys go into the cluster that runs at --endpoints: %w", system.ErrRefused)
	case opt.Mode == system.Light || len(s.prefixes) > 0:
		return s.putBack(ctx, n, info, opt)
	case s.dataDir == "":
		return system.Result{}, fmt.Errorf("say with --data-dir where the new member's data goes, or with --prefix which keys go into a running cluster: %w", system.ErrRefused)
	}
	dir, err := filepath.Abs(s.dataDir)
	if err != nil {
		return system.Result{}, err
	}
	now, err := s.release(ctx)
	if err != nil {
		return system.Result{}, err
	}
	if err := command.CheckRelease(info, now, 2, opt); err != nil {
		return system.Result{}, err
	}
	if err := s.mayFill(dir, opt); err != nil {
		return system.Result{}, err
	}
	f, err := n.Lookup(ctx, "snapshot.db")
	if err != nil {
		return system.Result{}, err
	}
	res := system.Result{Items: 1, Bytes: uint64(f.Attr().Size), Notes: []string{
		"restore the same snapshot on every other member, each with its own --name and --initial-advertise-peer-urls, before any is started",
		"start etcd with the same --name, --initial-cluster and --data-dir"}}
	opt.Stepf("snapshot.db, %d bytes, revision %s, %s entries, into %s", f.Attr().Size, info.Facts["revision"], info.Facts["entries"], dir)
	if opt.DryRun {
		return res, nil
	}
	return res, s.fill(ctx, command.Reader(ctx, f), dir, info, opt)
}

// staging is what the directory is called in which a member is made, within the one
// that it is for.
const staging = "restoring"

// mayFill refuses to replace directories that are in use, or that are not to be
// replaced.
func (s *System) mayFill(dir string, opt system.RestoreOptions) error {
	if err := unused(filepath.Join(dir, "member", "snap", "db")); err != nil {
		return err
	}
	if err := command.MayFill(dir, opt, "member", staging); err != nil {
		return err
	}
	if s.walDir == "" {
		return nil
	}
	wal, err := filepath.Abs(s.walDir)
	if err != nil {
		return err
	}
	if command.Within(wal, dir) || command.Within(dir, wal) { // what one replaces is the other's
		return fmt.Errorf("--wal-dir %s and --data-dir %s lie one in the other: name a --wal-dir beside it, and move that before the member is started: %w", wal, dir, system.ErrRefused)
	}
	if err := command.MayFill(s.walDir, opt, "*.wal", staging); err != nil {
		return fmt.Errorf("--wal-dir: %w", err)
	}
	return nil
}

// unused refuses a database that a server has locked, --force or not.
func unused(db string) error {
	f, err := os.Open(db)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // and with it the lock
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use: stop the etcd that runs there: %w", db, system.ErrRefused)
	}
	if err != nil {
		return fmt.Errorf("%s: flock: %w", db, err)
	}
	return nil
}

// fill makes a data directory of a stored snapshot. What is there goes when the new one
// is whole.
func (s *System) fill(ctx context.Context, f *command.Stored, dir string, info system.Info, opt system.RestoreOptions) error {
	file := filepath.Join(opt.Scratch, "snapshot.db")
	if err := command.Unstore(ctx, f, file); err != nil {
		return err
	}
	status, err := s.status(ctx, file)
	if err != nil {
		return err
	}
	if hash := strconv.FormatUint(status.Hash, 16); hash != info.Facts["hash"] {
		return fmt.Errorf("the hash of the database is %s, and was %s when it was captured: %w", hash, info.Facts["hash"], system.ErrIncomplete)
	}
	uid, gid, given, err := command.Owner(s.owner, dir)
	if err != nil {
		return err
	}
	dirs, args := []string{dir}, []string{"snapshot", "restore", file, "--data-dir", filepath.Join(dir, staging)}
	if s.walDir != "" {
		dirs, args = append(dirs, s.walDir), append(args, "--wal-dir", filepath.Join(s.walDir, staging))
	}
	// Below the directories, which may be mounts of their own.
	for _, d := range dirs {
		if err := errors.Join(os.MkdirAll(d, 0o700), os.RemoveAll(filepath.Join(d, staging))); err != nil {
			return err
		}
	}
	p, err := s.tools.Proc(append(args, s.restore...), "etcdutl", "etcdctl")
	if err != nil {
		return err
	}
	err = p.Run(ctx)
	for _, d := range dirs {
		tmp := filepath.Join(d, staging)
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		} else if err = replace(d, tmp); err == nil && given {
			err = command.Chown(d, uid, gid)
		}
	}
	return err
}

// replace puts what is in tmp, a directory within dir, in the place of all else there.
func replace(dir, tmp string) error {
	old, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range old {
		if e.Name() != filepath.Base(tmp) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	fresh, rerr := os.ReadDir(tmp)
	if err = errors.Join(err, rerr); err != nil {
		return err
	}
	for _, e := range fresh {
		err = errors.Join(err, os.Rename(filepath.Join(tmp, e.Name()), filepath.Join(dir, e.Name())))
	}
	return errors.Join(err, os.Remove(tmp))
}

// release is what the tools on this machine are.
func (s *System) release(ctx context.Context) (system.Info, error) {
	p, err := s.tools.Proc([]string{"version"}, "etcdutl", "etcdctl")
	if err != nil {
		return system.Info{}, err
	}
	p.Timeout = time.Minute
	out, err := p.Output(ctx)
	if err != nil {
		return system.Info{}, err
	}
	i := system.Info{Kind: Kind.Name}
	for line := range strings.Lines(out) {
		if _, v, ok := strings.Cut(line, " version: "); ok && i.Version == "" {
			i.Version = strings.TrimSpace(v)
		}
	}
	return i, nil
}
