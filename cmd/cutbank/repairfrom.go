package main

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

// fromFlags say where lost chunks may come from.
type fromFlags struct {
	repo, passwordFile, passwordCommand string
	dirs                                []string
}

// none tells that there is nowhere to look.
func (s *fromFlags) none() bool { return s.repo == "" && len(s.dirs) == 0 }

func (s *fromFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.repo, "from", "", "a second repository that may have what is lost")
	f.StringVar(&s.passwordCommand, "from-password-command", "", "command whose first line of output is the password of --from")
	f.StringVar(&s.passwordFile, "from-password-file", "", "file whose first line is the password of --from (or CUTBANK_FROM_PASSWORD)")
	f.StringArrayVar(&s.dirs, "from-dir", nil, "a directory that may still hold what is lost: / or a copy of what was snapshotted; repeatable")
}

// donors opens what may have lost chunks. The function closes it.
func (a *app) donors(ctx context.Context, r *repo.Repo, s *fromFlags) (ds []repo.Donor, done func(), err error) {
	done = func() {}
	for _, dir := range s.dirs {
		if fi, err := os.Stat(dir); err != nil {
			return nil, done, fmt.Errorf("--from-dir: %w", err)
		} else if !fi.IsDir() {
			return nil, done, usagef("--from-dir %s is no directory", quote(dir))
		}
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, done, err
		}
		ds = append(ds, repo.Donor{Name: dir, Files: filesBelow(abs)})
	}
	if s.repo == "" {
		return ds, done, nil
	}
	other, err := a.openFrom(ctx, s)
	if err != nil {
		return nil, done, err
	}
	d, err := a.repoDonor(ctx, r, other, s.repo)
	if err != nil {
		other.Close()
		return nil, done, err
	}
	return append([]repo.Donor{d}, ds...), func() { other.Close() }, nil
}

// openFrom opens the second repository.
func (a *app) openFrom(ctx context.Context, s *fromFlags) (*repo.Repo, error) {
	b, err := a.backendAt(s.repo)
	if err != nil {
		return nil, fmt.Errorf("--from: %w", err)
	}
	opt, err := a.options()
	if err != nil {
		return nil, err
	}
	env := os.Getenv("CUTBANK_FROM_PASSWORD")
	opt.Credential, opt.NoOpenKeys = nil, s.passwordCommand != "" || s.passwordFile != "" || env != ""
	opt.Password = func() (string, error) {
		switch {
		case s.passwordCommand != "":
			return a.commandPassword("--from-password-command", s.passwordCommand)
		case s.passwordFile != "":
			p, err := os.ReadFile(s.passwordFile)
			if err != nil {
				return "", fmt.Errorf("--from-password-file: %w", err)
			}
			return firstLine(p, "the file named by --from-password-file is empty")
		case env != "":
			return env, nil
		}
		p, err := a.promptPassword("password of "+s.repo+": ", false)
		return p, err
	}
	other, err := repo.Open(ctx, b, opt)
	if err != nil {
		return nil, a.otherError("from", s.repo, err)
	}
	return other, nil
}

// maxVersions is how many versions of a file of the second repository are
// looked into.
const maxVersions = 50

// repoDonor is a second repository. If it shares the secrets of the first, a
// chunk has the same ID in both; otherwise files of the same path are looked
// into.
func (a *app) repoDonor(ctx context.Context, r, other *repo.Repo, name string) (repo.Donor, error) {
	d := repo.Donor{Name: name}
	if r.Config().Repo == other.Config().Repo {
		return d, usagef("--from %s is the repository itself", quote(name))
	}
	if err := other.Sync(ctx); err != nil {
		a.warnf("--from %s: %v", name, err)
	}
	snaps, err := other.Snapshots(ctx)
	if err != nil {
		a.warnf("--from %s: %v", name, err)
	}
	mine, theirs := r.SecretKeys().Ring(), other.SecretKeys().Ring()
	if bytes.Equal(mine.Chunk, theirs.Chunk) && bytes.Equal(mine.Tree, theirs.Tree) {
		d.Get = func(ctx context.Context, kind pack.Kind, id chunk.ID) ([]byte, error) {
			if kind == pack.Meta {
				return other.Store().Page(ctx, id)
			}
			return other.Store().Data(ctx, id)
		}
	}
	pages := snapfs.NewCache(other.Store())
	d.Files = func(ctx context.Context, s *repo.Snapshot, path string) iter.Seq2[string, tree.Node] {
		return versions(ctx, pages, nearest(snaps, s), path)
	}
	return d, nil
}

// nearest sorts the snapshots of another repository: first those of the same
// name, and among them those made at nearly the same time.
func nearest(snaps []*repo.Snapshot, s *repo.Snapshot) []*repo.Snapshot {
	sorted := slices.Clone(snaps)
	slices.SortStableFunc(sorted, func(a, b *repo.Snapshot) int {
		if an, bn := a.Name == s.Name, b.Name == s.Name; an != bn {
			if an {
				return -1
			}
			return 1
		}
		return int(a.Time.Sub(s.Time).Abs()/1e9) - int(b.Time.Sub(s.Time).Abs()/1e9)
	})
	return sorted
}

// versions yields what stands at a path of snapshots, each version once.
func versions(ctx context.Context, pages *snapfs.Cache, snaps []*repo.Snapshot, path string) iter.Seq2[string, tree.Node] {
	return func(yield func(string, tree.Node) bool) {
		seen := map[string]bool{}
		for _, s := range snaps {
			if len(seen) == maxVersions || ctx.Err() != nil {
				return
			}
			root, err := pages.Open(ctx, s.Tree.ID)
			if err != nil {
				continue
			}
			n, err := snapfs.Walk(ctx, root, path)
			if err != nil {
				continue
			}
			at := n.Attr()
			key := fmt.Sprintf("%q %d %d.%d", path, at.Size, at.Mtime.Sec, at.Mtime.Nsec)
			if seen[key] {
				continue
			}
			seen[key] = true
			if !yield(key, n) {
				return
			}
		}
	}
}

// filesBelow is a live directory: the path of a file in a snapshot is looked for
// below it, taken from the root, from the snapshotted path, and from the
// directory's own place.
func filesBelow(dir string) func(context.Context, *repo.Snapshot, string) iter.Seq2[string, tree.Node] {
	return func(_ context.Context, s *repo.Snapshot, path string) iter.Seq2[string, tree.Node] {
		return func(yield func(string, tree.Node) bool) {
			for _, p := range placesBelow(dir, s.Paths, path) {
				n, err := source.Open(p)
				if err == nil && n.Attr().Kind == tree.File && !yield(p, n) {
					return
				}
			}
		}
	}
}

// placesBelow returns where a file of a snapshot may be below dir.
func placesBelow(dir string, snapshotted []repo.Path, path string) []string {
	places := []string{filepath.Join(dir, path)}
	for _, base := range append([]repo.Path{repo.Path(dir)}, snapshotted...) {
		rest, ok := strings.CutPrefix("/"+path, strings.TrimSuffix(string(base), "/")+"/")
		if p := filepath.Join(dir, rest); ok && !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	return places
}
