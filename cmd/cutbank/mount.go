package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/fs/mount"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// mountMemory is what a mount may need beside its cache before the collector
// works harder, in bytes: a soft limit.
const mountMemory = 96 << 20

// farMemory is what is added for what is fetched ahead across a network.
const farMemory = 64 << 20

// refreshEvery is how often a mount looks for new snapshots; in the network, where
// each look is four requests that somebody pays for, less often.
const (
	refreshEvery = 2 * time.Second
	refreshFar   = 30 * time.Second
)

type mountFlags struct {
	snapshot, path, log             string
	cache                           sizeFlag
	readAhead                       int
	allowOther, daemon, child, stat bool
}

func (a *app) mountCommand() *cobra.Command {
	s := mountFlags{cache: 64 << 20}
	c := &cobra.Command{
		Use:   "mount DIR",
		Short: "Show all snapshots as plain directories",
		Long: `mount shows the snapshots at DIR, read-only:

  NAME/TIME/...       the snapshotted paths
  NAME/latest         the newest snapshot of that name
  ids/ID              the same by ID
  tags/TAG/NAME/TIME  the same by tag

Snapshots that other processes make appear within seconds, of a repository in the
network within half a minute; forgotten ones vanish.
It stays in the foreground until Ctrl-C or "cutbank umount DIR"; with --daemon it
goes to the background once the mount answers. A mount that a killed process left
behind is cleaned away.

With --snapshot, and --path, one directory alone is mounted at DIR. SIGUSR1 makes
it print its counters.`,
		Example: `  cutbank mount -r /backup /mnt
  cutbank mount -r /backup /mnt --daemon --allow-other
  cutbank mount -r /backup /mnt --snapshot web/latest --path /srv`,
		Args: exactly(1, "DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			if s.path != "" && s.snapshot == "" {
				return usagef("--path needs --snapshot")
			}
			if s.log != "" && !s.daemon {
				return usagef("--log needs --daemon: a mount in the foreground tells what it has to say on stderr")
			}
			s.child = s.daemon && os.Getenv(daemonChild) != ""
			if s.daemon && !s.child {
				return a.daemon(c.Context(), &s, args[0])
			}
			return a.mount(c.Context(), &s, args[0])
		},
	}
	f := c.Flags()
	a.storedFlag(c)
	f.StringVar(&s.snapshot, "snapshot", "", "mount only this SNAPSHOT")
	f.StringVar(&s.path, "path", "", "mount only this directory of --snapshot")
	f.Var(&s.cache, "cache-size", "bytes of decoded data kept")
	f.IntVar(&s.readAhead, "read-ahead", 0, "KiB that the kernel reads ahead (default 1024; needs root)")
	f.BoolVar(&s.allowOther, "allow-other", false, "let other users in, by the permissions that files have")
	f.BoolVar(&s.daemon, "daemon", false, "go to the background once the mount answers")
	f.StringVar(&s.log, "log", "", "with --daemon: append messages to this file")
	f.BoolVar(&s.stat, "stats", false, "print counters at the end")
	return c
}

func (a *app) mount(ctx context.Context, s *mountFlags, dir string) error {
	// Readers of the FUSE device block in read(2); without two more Ps a woken
	// one would wait for decoders.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2)
	// Decoded frames are large and die young: collect early rather than hold
	// twice the cache.
	debug.SetGCPercent(50)
	memory := 2*int64(s.cache) + mountMemory
	if isURL(a.repoPath) {
		memory += farMemory
	}
	debug.SetMemoryLimit(memory)
	a.frameCache = int64(s.cache)
	ready, err := a.childReady(s)
	if err != nil {
		return err
	}
	srv, update, err := a.startMount(ctx, s, dir)
	ready(err)
	if err != nil {
		return err
	}
	a.sayf("mounted at %s; Ctrl-C or `cutbank umount %s` ends it", dir, dir)
	if err := a.emit("mounted", object{}.setPath("dir", dir)); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() {
		srv.Wait()
		close(gone)
	}()
	a.serve(ctx, srv, update, gone)
	if s.stat {
		a.mountStats(srv)
	}
	return nil
}

// startMount mounts; update brings the live directories up to date.
func (a *app) startMount(ctx context.Context, s *mountFlags, dir string) (*mount.Server, func(context.Context), error) {
	r, err := a.synced(ctx)
	if err != nil {
		return nil, nil, err
	}
	opt := mount.Options{AllowOther: s.allowOther, ReadAhead: s.readAhead, FSName: "cutbank:" + a.repoPath, Far: r.Store().Ahead() > 0,
		Logf: func(format string, args ...any) { a.errorf(format, args...) }}
	if s.snapshot != "" {
		if name, p := repo.SplitPath(s.snapshot); p != "" && s.path == "" {
			s.snapshot, s.path = name, p
		}
		_, _, n, err := a.node(ctx, s.snapshot+":"+s.path)
		if err != nil {
			return nil, nil, err
		}
		root, ok := n.(tree.Numbered)
		if !ok || n.Attr().Kind != tree.Dir {
			return nil, nil, fmt.Errorf("%s:%s is no directory", s.snapshot, s.path)
		}
		opt.Root = root
	}
	opt.Statfs = func() (uint64, uint64) { return a.stored(r) }
	if names, err := os.ReadDir(dir); err == nil && len(names) > 0 {
		a.warnf("%s is not empty: what is in it is hidden until the mount ends", quote(dir))
	}
	pages, views := snapfs.NewCache(r.Store()), &viewCache{limit: keptViews}
	srv, err := mount.Mount(dir, opt)
	if err != nil {
		return nil, nil, err
	}
	update := func(ctx context.Context) {
		snaps, err := r.Snapshots(ctx)
		if err != nil {
			a.logf("%v", err)
			if snaps == nil {
				return // a folder out of reach is no reason to show nothing
			}
		}
		srv.Update(a.mountSnapshots(snaps, pages, views))
	}
	update(ctx)
	return srv, update, nil
}

// stored returns what the packs take, for df.
func (a *app) stored(r *repo.Repo) (bytes, files uint64) {
	for _, info := range r.Index().Packs() {
		bytes += uint64(info.Size)
	}
	return bytes, 0
}

func (a *app) mountSnapshots(snaps []*repo.Snapshot, pages *snapfs.Cache, views *viewCache) []mount.Snapshot {
	shown := make([]mount.Snapshot, 0, len(snaps))
	for _, s := range snaps {
		shown = append(shown, mount.Snapshot{ID: s.ID.String(), Name: s.Name, Time: s.Dir, Tags: s.Tags, ModTime: tree.TimeOf(s.Time),
			Open: func(ctx context.Context) (tree.Numbered, error) { return a.lazyRoot(ctx, pages, views, s) }})
	}
	return shown
}

// serve keeps the mount up to date until it ends. A mount that is in use when
// it shall end is waited for.
func (a *app) serve(ctx context.Context, srv *mount.Server, update func(context.Context), gone <-chan struct{}) {
	every := refreshEvery
	if isURL(a.repoPath) {
		every = refreshFar
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	usr := make(chan os.Signal, 1)
	signal.Notify(usr, syscall.SIGUSR1)
	defer signal.Stop(usr)
	said := false
	for {
		select {
		case <-gone:
			return
		case <-usr:
			a.mountStats(srv)
		case <-ctx.Done():
			err := srv.Unmount()
			if err == nil {
				<-gone
				return
			}
			if !said {
				a.errorf("%v; waiting until it is free", err)
				said = true
			}
			select {
			case <-gone:
				return
			case <-time.After(200 * time.Millisecond):
			}
		case <-tick.C:
			update(ctx)
		}
	}
}

func (a *app) mountStats(srv *mount.Server) {
	st := srv.Stats()
	hits, misses, held := a.open.Store().CacheStats()
	fmt.Fprintf(a.stderr, "cutbank: %d lookups, %d readdirs, %d reads of %s, %d xattrs, %d files pushed of %s, %d errors, %d damaged; frames: %d hits, %d misses, %s held\n",
		st.Lookups, st.ReadDirs, st.Reads, bytesText(st.BytesRead), st.Xattrs, st.PushedFiles, bytesText(st.PushedBytes), st.Errors, st.Damaged, hits, misses, bytesText(uint64(held)))
	if err := a.emit("mount-stats", object{"lookups": st.Lookups, "readdirs": st.ReadDirs, "reads": st.Reads, "bytes_read": st.BytesRead, "xattrs": st.Xattrs,
		"pushed_files": st.PushedFiles, "pushed_bytes": st.PushedBytes, "errors": st.Errors, "damaged": st.Damaged, "frame_hits": hits, "frame_misses": misses, "frame_bytes": held}); err != nil {
		a.errorf("%v", err)
	}
}

// The two ends of a pipe tell the waiting parent that the mount answers, or
// why it does not.
const (
	daemonChild    = "CUTBANK_DAEMON_CHILD" // tells the child what it is
	daemonPassword = 3                      // descriptor that the child reads the password from
	daemonReady    = 4
)

// daemon starts the program anew in the background and waits until it is ready.
func (a *app) daemon(ctx context.Context, s *mountFlags, dir string) error {
	// A password from a prompt must be asked for while there is a terminal; the
	// child gets it through a pipe, never through its arguments or environment.
	password := ""
	if _, err := a.repoPassword(ctx, &password); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	rr, rw, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Env = append(os.Environ(), daemonChild+"=1")
	cmd.ExtraFiles = []*os.File{pr, rw}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.log != "" {
		f, err := os.OpenFile(s.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		cmd.Stdout, cmd.Stderr = f, f
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	pr.Close()
	rw.Close()
	_, werr := io.WriteString(pw, password)
	pw.Close()
	defer context.AfterFunc(ctx, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // a hung child must not outlive the wait
		rr.Close()
	})()
	answer, err := io.ReadAll(rr)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if string(answer) == "ready" {
		a.sayf("mounted at %s in the background (process %d); `cutbank umount %s` ends it", dir, cmd.Process.Pid, dir)
		return a.emit("mounted", object{"pid": cmd.Process.Pid}.setPath("dir", dir))
	}
	if err == nil {
		err = werr
	}
	code := 1
	if werr := cmd.Wait(); werr != nil {
		var exit *exec.ExitError
		if errors.As(werr, &exit) {
			code = exit.ExitCode()
		}
	}
	if len(answer) == 0 {
		return errors.Join(errors.New("the background process ended without a word; --log FILE keeps what it says"), err)
	}
	return &childError{code, string(answer)}
}

// childError is what the background process could not do.
type childError struct {
	code int
	text string
}

func (e *childError) Error() string { return e.text }

// repoPassword opens the repository once, and remembers the password that was
// needed.
func (a *app) repoPassword(ctx context.Context, password *string) (*repo.Repo, error) {
	b, err := a.place()
	if err != nil {
		return nil, err
	}
	opt, err := a.options()
	if err != nil {
		return nil, err
	}
	opt.CacheDir = ""
	opt.Password = func() (string, error) {
		p, err := a.password()
		*password = p
		return p, err
	}
	r, err := repo.Open(ctx, b, opt)
	if err != nil {
		return nil, err
	}
	return r, r.Close()
}

// childReady takes over what the parent hands down; the function it returns
// tells the parent how it went.
func (a *app) childReady(s *mountFlags) (func(error), error) {
	if !s.child {
		return func(error) {}, nil
	}
	p, err := io.ReadAll(os.NewFile(daemonPassword, "password"))
	if err != nil {
		return nil, fmt.Errorf("%s is for cutbank's own use: %w", daemonChild, err)
	}
	if len(p) > 0 {
		a.givenPassword = string(p)
	}
	ready := os.NewFile(daemonReady, "ready")
	return func(err error) {
		if err == nil {
			err = os.Chdir("/") // keep no file system busy
		}
		text := "ready"
		if err != nil {
			text = strings.TrimSpace(err.Error())
		}
		_, _ = io.WriteString(ready, text) // a parent that is gone needs no answer
		ready.Close()
	}, nil
}

func (a *app) umountCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "End a mount",
		Long: `umount ends a mount of cutbank at DIR, or cleans away what a killed one left. A
mount in use is an error, and stays.`,
		Example: `  cutbank umount /mnt`,
		Args:    exactly(1, "DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := mount.Unmount(args[0]); err != nil {
				return err
			}
			a.sayf("unmounted %s", args[0])
			return a.emit("unmounted", object{}.setPath("dir", args[0]))
		},
	}
}
