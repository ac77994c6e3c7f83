package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// step is one thing that every tool does.
type step struct {
	key, title string
	do         func(ctx context.Context, b *bench, p *participant) (usage, error)
	mutate     bool // the tree changes before
	snapshot   bool // the sizes are of interest after
	disk       bool // is done on the source itself too
	warm       bool // caches are never dropped before
}

// steps are done in this order.
var steps = []step{
	{key: "first", title: "first snapshot", do: snapshot, snapshot: true},
	{key: "unchanged", title: "unchanged snapshot", do: snapshot, snapshot: true},
	{key: "changed", title: "changed snapshot", do: snapshot, snapshot: true, mutate: true},
	{key: "restore", title: "full restore", do: restore},
	{key: "verify", title: "verify", do: verify},
	{key: "verify-data", title: "verify, data read", do: verifyData},
	{key: "mount", title: "mount", do: mount},
	{key: "walk", title: "walk", do: walk, disk: true},
	{key: "walk-again", title: "walk again", do: walk, disk: true, warm: true},
	{key: "tar", title: "tar", do: tarball, disk: true},
	{key: "tar-again", title: "tar again", do: tarball, disk: true, warm: true},
	{key: "umount", title: "mount, all its life", do: umount, warm: true},
}

// participant is a tool in one run, or the bare disk.
type participant struct {
	name      string
	tool      *tool // nil: the disk
	snapshots int
	mount     *mounted
	out       error // why it does nothing more in this run
}

// root returns where its tree can be read, or why not.
func (p *participant) root(b *bench) (string, error) {
	if p.tool == nil {
		return b.tree, nil
	}
	if p.mount == nil {
		return "", fmt.Errorf("%w: it is not mounted", errSkipped)
	}
	return p.mount.root, nil
}

// errSkipped is a step that could not be tried.
var errSkipped = errors.New("skipped")

// snapshot makes one, and counts.
func snapshot(ctx context.Context, _ *bench, p *participant) (usage, error) {
	if p.snapshots == 0 {
		for _, args := range p.tool.init {
			if _, err := p.tool.command(args).run(ctx, nil); err != nil {
				p.out = err
				return usage{}, err
			}
		}
	}
	n := p.snapshots + 1
	u, err := p.tool.command(p.tool.snapshot(n)).run(ctx, nil)
	if err == nil {
		err = countSnapshots(ctx, p.tool, n)
	}
	if err != nil {
		p.out = err // all that follows would be of another tree
		return usage{}, err
	}
	p.snapshots = n
	return u, nil
}

func countSnapshots(ctx context.Context, t *tool, want int) error {
	list, err := t.command(t.list).output(ctx)
	if err != nil {
		return err
	}
	got, err := t.count(list)
	if err == nil && got != want {
		err = fmt.Errorf("%s lists %d snapshots after making %d", t.name, got, want)
	}
	return err
}

// restore brings the newest snapshot back, and counts.
func restore(ctx context.Context, b *bench, p *participant) (usage, error) {
	target := filepath.Join(b.dir, "restored-"+p.name)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return usage{}, err
	}
	defer os.RemoveAll(target)
	c := p.tool.command(p.tool.restore(p.snapshots, target))
	c.dir = target
	u, err := c.run(ctx, nil)
	if err != nil {
		return usage{}, err
	}
	got, err := tallyDir(ctx, p.tool.restored(target))
	if err == nil {
		err = got.want(b.whole)
	}
	if err != nil {
		return usage{}, fmt.Errorf("what %s restored %w", p.name, err)
	}
	return u, nil
}

func verify(ctx context.Context, _ *bench, p *participant) (usage, error) {
	return p.tool.command(p.tool.verify).run(ctx, nil)
}

// verifyData reads everything; in the first run the tool must also notice one
// flipped byte.
func verifyData(ctx context.Context, b *bench, p *participant) (usage, error) {
	c := p.tool.command(p.tool.readData)
	u, err := c.run(ctx, nil)
	if err != nil || b.run > 1 {
		return u, err
	}
	path, off, err := middleOfLargest(p.tool.repo())
	if err != nil {
		return usage{}, err
	}
	if err := flip(path, off); err != nil {
		return usage{}, err
	}
	_, found := c.run(ctx, nil)
	if err := flip(path, off); err != nil {
		return usage{}, err
	}
	if ctx.Err() != nil {
		return usage{}, context.Cause(ctx)
	}
	if found == nil {
		return usage{}, fmt.Errorf("%s found nothing wrong after byte %d of %s was flipped", c, off, filepath.Base(path))
	}
	return u, nil
}

// middleOfLargest returns a place that holds data, in all likelihood.
func middleOfLargest(dir string) (path string, off int64, err error) {
	size := int64(0)
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Size() > size {
			path, size = p, info.Size()
		}
		return err
	})
	if err == nil && size == 0 {
		err = fmt.Errorf("%s holds no data", dir)
	}
	return path, size / 2, err
}

// flip changes one byte; doing it twice changes nothing.
func flip(path string, off int64) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p := make([]byte, 1)
	_, err = f.ReadAt(p, off)
	if err == nil {
		p[0] ^= 0x20
		_, err = f.WriteAt(p, off)
	}
	return errors.Join(err, f.Close(), os.Chmod(path, info.Mode().Perm()))
}

func mount(ctx context.Context, b *bench, p *participant) (usage, error) {
	m, u, err := startMount(ctx, p.tool, p.snapshots, filepath.Join(b.dir, "mnt-"+p.name))
	if m == nil {
		return u, err
	}
	b.mounts = append(b.mounts, m)
	if err != nil {
		_, _ = m.end() // what matters is why it does not mount
		return usage{}, err
	}
	p.mount = m
	return u, nil
}

func umount(_ context.Context, b *bench, p *participant) (usage, error) {
	if _, err := p.root(b); err != nil {
		return usage{}, err
	}
	return p.mount.end()
}

// walk looks at every name and its attributes.
func walk(ctx context.Context, b *bench, p *participant) (usage, error) {
	return b.read(ctx, p, tallyFind, func(root string) []string {
		return []string{"find", root, "-printf", `%y %s\n`}
	})
}

// tarball reads every byte. A hard link's bytes are archived under each name,
// as they are counted in the tree.
func tarball(ctx context.Context, b *bench, p *participant) (usage, error) {
	return b.read(ctx, p, tallyTar, func(root string) []string {
		return []string{"tar", "--create", "--hard-dereference", "--file", "-", "--directory", root, "."}
	})
}

// read runs a program over the participant's tree and compares what it saw with
// the source.
func (b *bench) read(ctx context.Context, p *participant, count func(io.Reader) (tally, error), args func(root string) []string) (usage, error) {
	root, err := p.root(b)
	if err != nil {
		return usage{}, err
	}
	var got tally
	do := func() (usage, error) {
		return command{args: args(root), env: []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}}.run(ctx, func(r io.Reader) (err error) {
			got, err = count(r)
			return err
		})
	}
	var u usage
	if p.mount != nil {
		u, err = p.mount.during(do)
	} else {
		u, err = do()
	}
	if err == nil {
		err = got.want(b.whole)
	}
	if err != nil {
		return usage{}, fmt.Errorf("the tree of %s %w", p.name, err)
	}
	return u, nil
}
