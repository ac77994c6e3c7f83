package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// node opens what SNAPSHOT[:PATH] names: its record, the path in it, clean and
// without a leading slash (empty for the whole snapshot), and the node there.
func (a *app) node(ctx context.Context, arg string) (*repo.Snapshot, string, tree.Node, error) {
	r, err := a.synced(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	name, p := repo.SplitPath(arg)
	rec, err := r.Resolve(ctx, name)
	if err != nil {
		return nil, "", nil, err
	}
	n, err := a.nodeIn(ctx, snapfs.NewCache(r.Store()), rec, p)
	return rec, cleanPath(p), n, err
}

// nodeIn opens a path of a snapshot; snapshots that are looked at together
// share a cache.
func (a *app) nodeIn(ctx context.Context, pages *snapfs.Cache, rec *repo.Snapshot, p string) (tree.Node, error) {
	root, err := a.root(ctx, pages, rec)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", snapshotName(rec), err)
	}
	n, err := snapfs.Walk(ctx, root, p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("snapshot %s has no %s: %w; `cutbank ls %s` shows what it has", snapshotName(rec), quote("/"+cleanPath(p)), fs.ErrNotExist, snapshotName(rec))
	}
	return n, err
}

// cleanPath is a path within a snapshot as the tree knows it.
func cleanPath(p string) string { return strings.Trim(path.Clean("/"+p), "/") }

// snapshotName is what a snapshot is called in output, and can be asked for by.
func snapshotName(s *repo.Snapshot) string { return s.Name + "/" + s.Dir }

// flushEvery is how long results may wait in a buffer for more of them.
const flushEvery = 200 * time.Millisecond

// results collects small writes, for a million lines must not be a million
// system calls, but lets nobody wait for what is found slowly.
type results struct {
	w    *bufio.Writer
	last time.Time
}

func (b *results) Write(p []byte) (int, error) {
	n, err := b.w.Write(p)
	if t := now(); err == nil && t.Sub(b.last) > flushEvery {
		b.last = t
		err = b.w.Flush()
	}
	return n, err
}

// buffered runs do with its output buffered. What could not be written is its
// error.
func (a *app) buffered(do func() error) error {
	out := a.stdout
	b := &results{w: bufio.NewWriterSize(out, 64<<10)}
	a.stdout = b
	err := do()
	a.stdout = out
	if ferr := b.w.Flush(); ferr != nil {
		err = errors.Join(err, fmt.Errorf("writing the output: %w", ferr))
	}
	return err
}

var _ io.Writer = (*results)(nil)

// modeText is a mode as ls shows it, such as -rwsr-xr-x.
func modeText(at *tree.Attr) string {
	b := []byte("?rwxrwxrwx")
	if k := int(at.Kind); k >= 1 && k <= 7 {
		b[0] = "?d-lpscb"[k]
	}
	for i := range 9 {
		if at.Mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit   uint32
		at    int
		on, x byte
	}{{04000, 3, 'S', 's'}, {02000, 6, 'S', 's'}, {01000, 9, 'T', 't'}} {
		if at.Mode&s.bit != 0 {
			if b[s.at] == 'x' {
				b[s.at] = s.x
			} else {
				b[s.at] = s.on
			}
		}
	}
	return string(b)
}

// timeText is a point in time in UTC, to the second.
func timeText(t tree.Time) string { return t.Time().Format("2006-01-02 15:04:05Z") }

// setTime adds a point in time: for people, and without loss.
func (o object) setTime(key string, t tree.Time) object {
	o[key] = t.Time().Format(time.RFC3339Nano)
	o[key+"_sec"], o[key+"_nsec"] = t.Sec, t.Nsec
	return o
}

// nodeObject is a node as --json tells it.
func nodeObject(path string, at *tree.Attr) object {
	o := object{"kind": at.Kind.String(), "mode": fmt.Sprintf("%04o", at.Mode), "uid": at.UID, "gid": at.GID, "nlink": at.Nlink}
	o.setPath("path", path).setTime("mtime", at.Mtime)
	switch at.Kind {
	case tree.File:
		o["size"], o["allocated"], o["changed"] = at.Size, at.Allocated, at.Changed
	case tree.Symlink:
		o.setPath("target", at.Target)
	case tree.CharDevice, tree.BlockDevice:
		o["rdev"] = rdevText(at.Rdev)
	}
	return o
}

// failures counts what could not be read, names each, and keeps the first. A
// walk goes on past them.
type failures struct {
	first error
	n     int
}

func (f *failures) add(a *app, p string, err error) {
	if f.n++; f.first == nil {
		f.first = err
	}
	err = bare(err)
	a.errorf("%s: %v", quote(p), err)
	if err := a.emit("problem", object{"error": err.Error()}.setPath("path", p)); err != nil {
		a.errorf("%v", err)
	}
}

// bare strips the paths that stored nodes put around an error, where it is
// shown with a path anyway. Those of live nodes tell which side it was.
func bare(err error) error {
	for {
		p, ok := err.(*fs.PathError)
		if !ok || strings.HasPrefix(p.Path, "/") {
			return err
		}
		err = p.Err
	}
}

// err is what is left to say at the end.
func (f *failures) err() error {
	if f.n == 0 {
		return nil
	}
	return &wrapped{fmt.Sprintf("%d paths could not be read, so the result is not whole; `cutbank verify` tells more", f.n), f.first}
}

// wrapped says something of its own about an error that was shown already.
type wrapped struct {
	text string
	err  error
}

func (w *wrapped) Error() string { return w.text }
func (w *wrapped) Unwrap() error { return w.err }
