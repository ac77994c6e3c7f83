package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"path"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

type lsFlags struct{ long, recursive, itself, xattrs bool }

func (a *app) lsCommand() *cobra.Command {
	var s lsFlags
	c := &cobra.Command{
		Use:   "ls SNAPSHOT[:PATH]",
		Short: "List what a snapshot holds",
		Long: `ls lists the directory that PATH names in a snapshot, or PATH itself if it is no
directory. Without PATH it lists what is in the snapshotted paths. Lines are
whole paths, sorted by name within each directory, and come as they are found.

With -l: mode, number of hard links, numeric owner and group, size (of devices
their number), mtime in UTC, path, and a symlink's target; then [sparse] where a
file takes less room than its size, and [changed] where it changed while it was
read.`,
		Example: `  cutbank ls -r /backup latest
  cutbank ls -r /backup -l web/latest:/etc
  cutbank ls -r /backup -R --json 4f3a:/srv`,
		Args: exactly(1, "one SNAPSHOT[:PATH]"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.buffered(func() error { return a.ls(c.Context(), &s, args[0]) })
		},
	}
	f := c.Flags()
	a.storedFlag(c)
	f.BoolVarP(&s.long, "long", "l", false, "show attributes")
	f.BoolVarP(&s.recursive, "recursive", "R", false, "go down into directories")
	f.BoolVarP(&s.itself, "directory", "d", false, "show a directory itself, not what is in it")
	f.BoolVar(&s.xattrs, "xattrs", false, "show extended attributes too")
	return c
}

func (a *app) ls(ctx context.Context, s *lsFlags, arg string) error {
	rec, at, n, err := a.node(ctx, arg)
	if err != nil {
		return err
	}
	tops, err := topsOf(ctx, rec, at, n)
	if err != nil {
		return err
	}
	l := lister{a: a, s: s}
	for _, t := range tops {
		if s.itself || t.node.Attr().Kind != tree.Dir {
			err = l.show(ctx, t.path, t.node)
		} else {
			err = l.below(ctx, t.path, t.node)
		}
		if err != nil {
			return err
		}
	}
	return l.bad.err()
}

// top is where a look into a snapshot begins.
type top struct {
	path string
	node tree.Node
}

// topsOf returns the path that was asked for, or else the snapshotted paths.
func topsOf(ctx context.Context, rec *repo.Snapshot, at string, n tree.Node) ([]top, error) {
	if at != "" {
		return []top{{"/" + at, n}}, nil
	}
	var tops []top
	for _, p := range topPaths(rec.Paths) {
		c, err := snapfs.Walk(ctx, n, p)
		if err != nil {
			return nil, err
		}
		tops = append(tops, top{"/" + p, c})
	}
	if len(tops) == 0 { // a cluster's snapshot
		tops = []top{{"/", n}}
	}
	return tops, nil
}

// topPaths cleans snapshotted paths and leaves out those that lie in others.
func topPaths(paths []repo.Path) []string {
	var tops []string
	for _, p := range paths {
		p := cleanPath(string(p))
		inside := false
		for _, q := range paths {
			q := cleanPath(string(q))
			inside = inside || p != q && (q == "" || strings.HasPrefix(p, q+"/"))
		}
		if !inside {
			tops = append(tops, p)
		}
	}
	return tops
}

// lister prints nodes.
type lister struct {
	a   *app
	s   *lsFlags
	bad failures
}

func (l *lister) below(ctx context.Context, dir string, n tree.Node) error {
	for c, err := range n.Entries(ctx, 0) {
		if err == nil {
			err = ctx.Err()
		}
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			l.bad.add(l.a, dir, err)
			continue
		}
		p := path.Join(dir, c.Attr().Name)
		if err := l.show(ctx, p, c); err != nil {
			return err
		}
		if l.s.recursive && c.Attr().Kind == tree.Dir {
			if err := l.below(ctx, p, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lister) show(ctx context.Context, p string, n tree.Node) error {
	at := n.Attr()
	var xs []tree.Xattr
	if l.s.xattrs {
		var err error
		if xs, err = n.Xattrs(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.bad.add(l.a, p, err)
		}
	}
	if l.a.json {
		o := nodeObject(p, at)
		if in, ok := n.(tree.Numbered); ok {
			o["ino"] = in.Number() + 1
		}
		if l.s.xattrs {
			o["xattrs"] = xattrObjects(xs)
		}
		return l.a.emit("node", o)
	}
	if l.s.long {
		l.a.printf("%s\n", longLine(p, at))
	} else {
		l.a.printf("%s\n", quote(p))
	}
	for _, x := range xs {
		l.a.printf("    %s=%q\n", quote(x.Name), x.Value)
	}
	return nil
}

func xattrObjects(xs []tree.Xattr) []object {
	list := []object{}
	for _, x := range xs {
		list = append(list, object{"value_b64": base64.StdEncoding.EncodeToString(x.Value)}.setPath("name", x.Name))
	}
	return list
}

// longLine is a line of ls -l.
func longLine(p string, at *tree.Attr) string {
	size := fmt.Sprint(at.Size)
	if at.Kind == tree.CharDevice || at.Kind == tree.BlockDevice {
		size = rdevText(at.Rdev)
	}
	line := fmt.Sprintf("%s %3d %5d %5d %12s %s %s", modeText(at), at.Nlink, at.UID, at.GID, size, timeText(at.Mtime), quote(p))
	if at.Kind == tree.Symlink {
		line += " -> " + quote(at.Target)
	}
	if at.Kind == tree.File && at.Allocated < at.Size {
		line += " [sparse]"
	}
	if at.Changed {
		line += " [changed]"
	}
	return line
}

func rdevText(rdev uint64) string { return fmt.Sprintf("%d,%d", unix.Major(rdev), unix.Minor(rdev)) }
