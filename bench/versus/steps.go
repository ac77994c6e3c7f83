package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cutbankfs/cutbank/bench/tool"
)

// step is one thing that every tool does.
type step struct {
	key, title string
	do         func(ctx context.Context, b *bench, p *participant) (tool.Usage, error)
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
	tool      *tool.Tool // nil: the disk
	snapshots int
	mount     *tool.Mounted
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
	return p.mount.Root, nil
}

// errSkipped is a step that could not be tried.
var errSkipped = errors.New("skipped")

// snapshot makes one, and counts.
func snapshot(ctx context.Context, _ *bench, p *participant) (tool.Usage, error) {
	if p.snapshots == 0 {
		for _, args := range p.tool.Init {
			if _, err := p.tool.Command(args).Run(ctx, nil); err != nil {
				p.out = err
				return tool.Usage{}, err
			}
		}
	}
	n := p.snapshots + 1
	u, err := p.tool.Command(p.tool.Snapshot(n)).Run(ctx, nil)
	if err == nil {
		err = p.tool.CheckCount(ctx, n)
	}
	if err != nil {
		p.out = err // all that follows would be of another tree
		return tool.Usage{}, err
	}
	p.snapshots = n
	return u, nil
}

// restore brings the newest snapshot back, and counts.
func restore(ctx context.Context, b *bench, p *participant) (tool.Usage, error) {
	target := filepath.Join(b.dir, "restored-"+p.name)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return tool.Usage{}, err
	}
	defer os.RemoveAll(target)
	c := p.tool.Command(p.tool.Restore(p.snapshots, target))
	c.Dir = target
	u, err := c.Run(ctx, nil)
	if err != nil {
		return tool.Usage{}, err
	}
	got, err := tool.TallyDir(ctx, p.tool.Restored(target))
	if err == nil {
		err = got.Want(b.whole)
	}
	if err != nil {
		return tool.Usage{}, fmt.Errorf("what %s restored %w", p.name, err)
	}
	return u, nil
}

func verify(ctx context.Context, _ *bench, p *participant) (tool.Usage, error) {
	return p.tool.Command(p.tool.Verify).Run(ctx, nil)
}

// verifyData reads everything; in the first run the tool must also notice one
// flipped byte.
func verifyData(ctx context.Context, b *bench, p *participant) (tool.Usage, error) {
	c := p.tool.Command(p.tool.ReadData)
	u, err := c.Run(ctx, nil)
	if err != nil || b.run > 1 {
		return u, err
	}
	path, off, err := middleOfLargest(p.tool.Repo())
	if err != nil {
		return tool.Usage{}, err
	}
	if err := flip(path, off); err != nil {
		return tool.Usage{}, err
	}
	_, found := c.Run(ctx, nil)
	if err := flip(path, off); err != nil {
		return tool.Usage{}, err
	}
	if ctx.Err() != nil {
		return tool.Usage{}, context.Cause(ctx)
	}
	if found == nil {
		return tool.Usage{}, fmt.Errorf("%s found nothing wrong after byte %d of %s was flipped", c, off, filepath.Base(path))
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

func mount(ctx context.Context, b *bench, p *participant) (tool.Usage, error) {
	m, u, err := tool.StartMount(ctx, p.tool, p.snapshots, filepath.Join(b.dir, "mnt-"+p.name))
	if m == nil {
		return u, err
	}
	b.mounts = append(b.mounts, m)
	if err != nil {
		_, _ = m.End() // what matters is why it does not mount
		return tool.Usage{}, err
	}
	p.mount = m
	return u, nil
}

func umount(_ context.Context, b *bench, p *participant) (tool.Usage, error) {
	if _, err := p.root(b); err != nil {
		return tool.Usage{}, err
	}
	return p.mount.End()
}

// walk looks at every name and its attributes.
func walk(ctx context.Context, b *bench, p *participant) (tool.Usage, error) {
	return b.read(ctx, p, tool.TallyFind, func(root string) []string {
		return []string{"find", root, "-printf", `%y %s\n`}
	})
}

// tarball reads every byte. A hard link's bytes are archived under each name,
// as they are counted in the tree.
func tarball(ctx context.Context, b *bench, p *participant) (tool.Usage, error) {
	return b.read(ctx, p, tool.TallyTar, func(root string) []string {
		return []string{"tar", "--create", "--hard-dereference", "--file", "-", "--directory", root, "."}
	})
}

// read runs a program over the participant's tree and compares what it saw with
// the source.
func (b *bench) read(ctx context.Context, p *participant, count func(io.Reader) (tool.Tally, error), args func(root string) []string) (tool.Usage, error) {
	root, err := p.root(b)
	if err != nil {
		return tool.Usage{}, err
	}
	var got tool.Tally
	do := func() (tool.Usage, error) {
		return tool.Command{Args: args(root), Env: []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}}.Run(ctx, func(r io.Reader) (err error) {
			got, err = count(r)
			return err
		})
	}
	var u tool.Usage
	if p.mount != nil {
		u, err = p.mount.During(do)
	} else {
		u, err = do()
	}
	if err == nil {
		err = got.Want(b.whole)
	}
	if err != nil {
		return tool.Usage{}, fmt.Errorf("the tree of %s %w", p.name, err)
	}
	return u, nil
}
