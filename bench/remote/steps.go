package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/cutbankfs/cutbank/bench/tool"
)

// step is one thing that every tool does.
type step struct {
	key, title string
	cold       bool // the tool's caches are emptied before
	do         func(ctx context.Context, b *bench, p *participant) (done, error)
}

// done is a step that was done.
type done struct {
	usage tool.Usage
	check func(ctx context.Context) error // whether it did its work, not measured; nil: it is known
}

// steps are done in this order.
var steps = []step{
	{key: "init", title: "init", do: initialize},
	{key: "first-small", title: "first snapshot, small files", do: snapshot(small)},
	{key: "first-big", title: "first snapshot, big files", do: snapshot(big)},
	{key: "unchanged", title: "unchanged, small files", do: snapshot(small)},
	{key: "unchanged-cold", title: "the same, cold", cold: true, do: snapshot(small)},
	{key: "history", title: "more of them, together", do: history},
	{key: "mount", title: "mount", cold: true, do: mount},
	{key: "ls", title: "first ls", do: list},
	{key: "walk", title: "find", do: walk},
	{key: "tar", title: "tar", do: tarball},
	{key: "idle", title: "mount, left alone", do: idle},
	{key: "mount-again", title: "mount, warm", do: mount},
	{key: "ls-again", title: "first ls, warm", do: list},
	{key: "walk-again", title: "find, warm", do: walk},
	{key: "tar-again", title: "tar, warm", do: tarball},
	{key: "mount-one", title: "mount for one file", cold: true, do: mount},
	{key: "one", title: "one small file", do: oneFile(0)},
	{key: "one-more", title: "one more, elsewhere", do: oneFile(1)},
	{key: "restore-small", title: "restore, small files", cold: true, do: restore(small)},
	{key: "restore-big", title: "restore, big files", cold: true, do: restore(big)},
	{key: "restore-again", title: "restore, big, warm", do: restore(big)},
}

// sums are rows that add up others.
var sums = []struct {
	key, title string
	of         []string
}{
	{"mount-all", "mount, ls, find, tar", []string{"mount", "ls", "walk", "tar"}},
	{"mount-all-again", "the same, warm", []string{"mount-again", "ls-again", "walk-again", "tar-again"}},
}

// Trees, and where they are in a participant.
const (
	small = iota
	big
	trees
)

// labels name the snapshots of each.
var labels = [trees]string{"small", "big"}

// participant is a tool with a server far away.
type participant struct {
	name      string
	tools     [trees]*tool.Tool // one repository, and one place for caches
	proxy     *proxy
	snapshots [trees]int
	mount     *tool.Mounted
	out       error // why it does nothing more
}

// errSkipped is a step that could not be tried.
var errSkipped = errors.New("skipped")

// unmount ends the mount, if there is one.
func (p *participant) unmount() error {
	if p.mount == nil {
		return nil
	}
	_, err := p.mount.End()
	p.mount = nil
	return err
}

// forget empties the tool's caches.
func (p *participant) forget() error {
	cache := p.tools[small].Cache()
	return errors.Join(os.RemoveAll(cache), os.Mkdir(cache, 0o755))
}

func initialize(ctx context.Context, _ *bench, p *participant) (done, error) {
	var all tool.Usage
	for _, args := range p.tools[small].Init {
		u, err := p.tools[small].Command(args).Run(ctx, nil)
		if err != nil {
			p.out = err
			return done{}, err
		}
		all.Wall, all.CPU, all.Peak = all.Wall+u.Wall, all.CPU+u.CPU, max(all.Peak, u.Peak)
	}
	return done{usage: all}, nil
}

func snapshot(which int) func(context.Context, *bench, *participant) (done, error) {
	return func(ctx context.Context, _ *bench, p *participant) (done, error) {
		t := p.tools[which]
		n := p.snapshots[which] + 1
		u, err := t.Command(t.Snapshot(n)).Run(ctx, nil)
		if err != nil {
			p.out = err // what follows would be of another state
			return done{}, err
		}
		p.snapshots[which] = n
		return done{u, func(ctx context.Context) error {
			return t.CheckCount(ctx, p.snapshots[small]+p.snapshots[big])
		}}, nil
	}
}

// history makes many snapshots, so that what reads meets a repository of some age.
func history(ctx context.Context, b *bench, p *participant) (done, error) {
	var d done
	var all tool.Usage
	for range b.opt.history {
		var err error
		if d, err = snapshot(small)(ctx, b, p); err != nil {
			return done{}, err
		}
		all.Wall, all.CPU, all.Peak = all.Wall+d.usage.Wall, all.CPU+d.usage.CPU, max(all.Peak, d.usage.Peak)
	}
	d.usage = all
	return d, nil
}

// idle leaves the mount alone.
func idle(ctx context.Context, b *bench, p *participant) (done, error) {
	u, err := p.through(func(string) (u tool.Usage, err error) {
		u.Wall = b.opt.idle
		return u, sleep(ctx, b.opt.idle)
	})
	return done{usage: u}, err
}

// mount shows the small files.
func mount(ctx context.Context, b *bench, p *participant) (done, error) {
	m, u, err := tool.StartMount(ctx, p.tools[small], p.snapshots[small], filepath.Join(b.dir, "mnt-"+p.name))
	p.mount = m
	if err != nil {
		if m != nil {
			_ = p.unmount() // what matters is why it does not mount
		}
		return done{}, err
	}
	return done{usage: u}, nil
}

// through measures what reads the mount.
func (p *participant) through(do func(root string) (tool.Usage, error)) (tool.Usage, error) {
	if p.mount == nil {
		return tool.Usage{}, fmt.Errorf("%w: it is not mounted", errSkipped)
	}
	return p.mount.During(func() (tool.Usage, error) { return do(p.mount.Root) })
}

// run reads the mount by a command, which sees no settings.
func (p *participant) run(ctx context.Context, read func(io.Reader) error, args func(root string) []string) (tool.Usage, error) {
	return p.through(func(root string) (tool.Usage, error) {
		return tool.Command{Args: args(root), Env: []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}}.Run(ctx, read)
	})
}

// list looks into the top directory.
func list(ctx context.Context, b *bench, p *participant) (done, error) {
	lines := -1 // the first is the total
	u, err := p.run(ctx, func(r io.Reader) error {
		out, err := io.ReadAll(io.LimitReader(r, 16<<20))
		lines += bytes.Count(out, []byte("\n"))
		return err
	}, func(root string) []string { return []string{"ls", "-l", root} })
	if want := int(b.trees[small].whole.Dirs) - 1; err == nil && lines != want {
		err = fmt.Errorf("ls shows %d directories of %d", lines, want)
	}
	return done{usage: u}, err
}

// walk looks at every name and its attributes.
func walk(ctx context.Context, b *bench, p *participant) (done, error) {
	var got tool.Tally
	u, err := p.run(ctx, func(r io.Reader) (err error) {
		got, err = tool.TallyFind(r)
		return err
	}, func(root string) []string { return []string{"find", root, "-printf", `%y %s\n`} })
	if err == nil {
		err = got.Want(b.trees[small].whole)
	}
	return done{usage: u}, err
}

// tarball reads every byte.
func tarball(ctx context.Context, b *bench, p *participant) (done, error) {
	var got contents
	u, err := p.run(ctx, func(r io.Reader) (err error) {
		got, err = readTar(r)
		return err
	}, func(root string) []string {
		return []string{"tar", "--create", "--file", "-", "--directory", root, "."}
	})
	if err == nil {
		err = got.want(b.trees[small].holds)
	}
	return done{usage: u}, err
}

// oneFile reads the i-th of some files.
func oneFile(i int) func(context.Context, *bench, *participant) (done, error) {
	return func(_ context.Context, b *bench, p *participant) (done, error) {
		name := b.trees[small].some[i]
		var got []byte
		u, err := p.through(func(root string) (u tool.Usage, err error) {
			start := time.Now()
			got, err = os.ReadFile(filepath.Join(root, name))
			u.Wall = time.Since(start)
			return u, err
		})
		if err == nil && sha256.Sum256(got) != b.trees[small].holds[name] {
			err = fmt.Errorf("%s holds other bytes", name)
		}
		return done{usage: u}, err
	}
}

// restore brings a tree back into an empty folder.
func restore(which int) func(context.Context, *bench, *participant) (done, error) {
	return func(ctx context.Context, b *bench, p *participant) (done, error) {
		target := filepath.Join(b.dir, "restored-"+p.name)
		if err := os.Mkdir(target, 0o755); err != nil {
			return done{}, err
		}
		t := p.tools[which]
		c := t.Command(t.Restore(p.snapshots[which], target))
		c.Dir = target
		u, err := c.Run(ctx, nil)
		if err != nil {
			return done{}, errors.Join(err, os.RemoveAll(target))
		}
		return done{u, func(ctx context.Context) error {
			got, err := readDir(ctx, t.Restored(target))
			if err == nil {
				err = got.want(b.trees[which].holds)
			}
			return errors.Join(err, os.RemoveAll(target))
		}}, nil
	}
}
