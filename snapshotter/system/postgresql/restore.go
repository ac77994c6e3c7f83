package postgresql

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/command"
)

// restoreBase makes a data directory of a full snapshot.
func (s *System) restoreBase(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	if opt.Path != "" {
		return system.Result{}, fmt.Errorf("a full snapshot is restored as a whole: give no path (single files are in the mount, single databases in light snapshots): %w", system.ErrRefused)
	}
	if s.dataDir == "" {
		return system.Result{}, fmt.Errorf("say with -D where the new data directory is: %w", system.ErrRefused)
	}
	dir, err := filepath.Abs(s.dataDir)
	if err != nil {
		return system.Result{}, err
	}
	now, err := s.release(ctx)
	if err != nil {
		return system.Result{}, err
	}
	if err := s.mayRun(dir); err != nil {
		return system.Result{}, err
	}
	spaces, err := s.tablespaces(ctx, n)
	if err != nil {
		return system.Result{}, err
	}
	if err := checkSpaces(ctx, n, dir, spaces); err != nil {
		return system.Result{}, err
	}
	if err := command.MayFill(dir, opt, "PG_VERSION", "backup_label", "base", "global"); err != nil {
		return system.Result{}, err
	}
	if err := s.mayFillSpaces(dir, spaces, opt); err != nil {
		return system.Result{}, err
	}
	if now.Cluster, err = replaced(dir); err != nil {
		return system.Result{}, err
	}
	if err := command.CheckRelease(info, now, 1, opt); err != nil {
		return system.Result{}, err
	}
	res := system.Result{}
	if t, ok := n.(tree.Totaler); ok {
		res.Items, res.Bytes = t.Totals().Files, t.Totals().Bytes
	}
	opt.Stepf("%d files, %d bytes, into %s", res.Items, res.Bytes, dir)
	for _, oid := range slices.Sorted(maps.Keys(spaces)) {
		opt.Stepf("of these tablespace %s into %s", oid, spaces[oid])
	}
	opt.Stepf("then pg_verifybackup")
	res.Notes = s.notes(ctx, n)
	if opt.DryRun {
		return res, nil
	}
	return res, s.fill(ctx, n, dir, spaces, opt)
}

// checkSpaces refuses tablespaces that hold what no server puts into one: the snapshot
// says where they go, and if it could say what stands there, too, whoever made it could
// have any file written. Nor may one replace another, or the data directory.
func checkSpaces(ctx context.Context, n tree.Node, dir string, spaces map[string]string) error {
	taken := map[string]string{dir: "the data directory"}
	for _, oid := range slices.Sorted(maps.Keys(spaces)) {
		from, err := lookup(ctx, n, "pg_tblspc", oid)
		if err != nil {
			return fmt.Errorf("tablespace %s: %w", oid, err)
		}
		for c, err := range from.Entries(ctx, 0) {
			if err != nil {
				return fmt.Errorf("tablespace %s: %w", oid, err)
			}
			if a := c.Attr(); a.Kind != tree.Dir || !strings.HasPrefix(a.Name, "PG_") {
				return fmt.Errorf("tablespace %s has %q, and a server has nothing there but directories PG_...: nothing is written to %s: %w", oid, a.Name, spaces[oid], system.ErrRefused)
			}
		}
		for at, what := range taken {
			if command.Within(at, spaces[oid]) {
				return fmt.Errorf("tablespace %s is to go to %s, where %s goes, too: say with -T where else: %w", oid, spaces[oid], what, system.ErrRefused)
			}
		}
		taken[spaces[oid]] = "tablespace " + oid
	}
	return nil
}

// mayFillSpaces refuses to replace a tablespace that the snapshot alone has named, and
// that is none of the server in dir: another one may be using it.
func (s *System) mayFillSpaces(dir string, spaces map[string]string, opt system.RestoreOptions) error {
	mine := slices.Collect(maps.Values(s.mappings))
	links, err := filepath.Glob(filepath.Join(dir, "pg_tblspc", "*"))
	if err != nil {
		return err
	}
	for _, l := range links {
		if at, err := os.Readlink(l); err == nil {
			mine = append(mine, at)
		}
	}
	for _, at := range slices.Sorted(maps.Values(spaces)) {
		if err := command.MayFill(at, opt, "PG_*"); err != nil {
			return err
		}
		names, err := os.ReadDir(at)
		if err == nil && len(names) > 0 && !slices.ContainsFunc(mine, func(m string) bool { return filepath.Clean(m) == at }) {
			return fmt.Errorf("%s is not empty, and is no tablespace of the server in %s: say with -T %s=NEWDIR where it goes (the same directory, if it is meant): %w", at, dir, at, system.ErrRefused)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// replaced returns the system identifier of the data directory that is replaced; empty
// if there is none. It is the first that stands in its control file.
func replaced(dir string) (string, error) {
	f, err := os.Open(filepath.Join(dir, "global", "pg_control"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	var id uint64
	switch err := binary.Read(f, binary.NativeEndian, &id); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // half restored
		return "", nil
	case err != nil:
		return "", err
	}
	return strconv.FormatUint(id, 10), nil
}

// mayRun refuses a directory in which a server runs, --force or not.
func (s *System) mayRun(dir string) error {
	_, err := os.Stat(filepath.Join(dir, "postmaster.pid"))
	if err == nil {
		return fmt.Errorf("%s has a postmaster.pid: stop the server that runs there (or remove the file if none does): %w", dir, system.ErrRefused)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// notes tell what is left to do.
func (s *System) notes(ctx context.Context, n tree.Node) []string {
	notes := []string{"look at archive_command and primary_conninfo before the server is started beside the one it was captured from",
		"start the server: it replays the log that is in pg_wal, to the end of the backup (to go on with archived log, set restore_command and make recovery.signal first)"}
	if _, err := n.Lookup(ctx, "standby.signal"); err == nil {
		notes = append(notes, "a standby was captured: it starts as one, unless you remove standby.signal")
	}
	return notes
}

// release is what the server's programs on this machine are.
func (s *System) release(ctx context.Context) (system.Info, error) {
	out, err := s.tools.Ask(ctx, "pg_verifybackup", "--version")
	if err != nil {
		return system.Info{}, err
	}
	i := system.Info{Kind: Kind.Name}
	if f := strings.Fields(out); len(f) >= 3 {
		i.Version = f[2]
	}
	return i, nil
}

// tablespaces returns where each tablespace goes, by its OID.
func (s *System) tablespaces(ctx context.Context, n tree.Node) (map[string]string, error) {
	lines, err := tablespaceMap(ctx, n)
	if err != nil {
		return nil, err
	}
	spaces, used := map[string]string{}, map[string]bool{}
	for _, l := range lines {
		oid, at, ok := strings.Cut(l, " ")
		if !ok || strings.Trim(oid, "0123456789") != "" || !filepath.IsAbs(at) {
			return nil, fmt.Errorf("tablespace_map: %q is no line of it", l)
		}
		if to, ok := s.mappings[at]; ok {
			used[at], at = true, to
		}
		spaces[oid] = filepath.Clean(at)
	}
	for from := range s.mappings {
		if !used[from] {
			return nil, fmt.Errorf("-T: the snapshot has no tablespace in %s: %w", from, system.ErrRefused)
		}
	}
	return spaces, nil
}

// tablespaceMap returns the lines of the file that names the tablespaces.
func tablespaceMap(ctx context.Context, n tree.Node) ([]string, error) {
	f, err := n.Lookup(ctx, "tablespace_map")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := io.ReadAll(io.LimitReader(command.Reader(ctx, f), 1<<20))
	if err != nil {
		return nil, err
	}
	var lines []string
	for sc := bufio.NewScanner(strings.NewReader(string(p))); sc.Scan(); {
		lines = append(lines, sc.Text())
	}
	return lines, nil
}

// fill writes the directories, has them verified, and gives them to their owner.
func (s *System) fill(ctx context.Context, n tree.Node, dir string, spaces map[string]string, opt system.RestoreOptions) error {
	uid, gid, given, err := command.Owner(s.owner, dir)
	if err != nil {
		return err
	}
	if err := opt.Unpack(ctx, &without{n, spaces}, dir); err != nil {
		return err
	}
	tblspc := filepath.Join(dir, "pg_tblspc")
	for oid, at := range spaces {
		from, err := lookup(ctx, n, "pg_tblspc", oid)
		if err != nil {
			return err
		}
		if err := opt.Unpack(ctx, from, at); err != nil {
			return err
		}
		if err := os.Symlink(at, filepath.Join(tblspc, oid)); err != nil {
			return err
		}
	}
	if err := s.tools.Run(ctx, "pg_verifybackup", "-q", dir); err != nil {
		return fmt.Errorf("what was restored is not what the server sent: %w", err)
	}
	if err := moveSpaces(dir, spaces); err != nil {
		return err
	}
	if !given {
		return nil
	}
	for _, d := range append(slices.Sorted(maps.Values(spaces)), dir) {
		if err := command.Chown(d, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// moveSpaces writes down where the tablespaces are now. The server makes the links by
// this file when it starts; before that it was verified as it was.
func moveSpaces(dir string, spaces map[string]string) error {
	if len(spaces) == 0 {
		return nil
	}
	var b strings.Builder
	for _, oid := range slices.Sorted(maps.Keys(spaces)) {
		fmt.Fprintf(&b, "%s %s\n", oid, spaces[oid])
	}
	f, err := os.OpenFile(filepath.Join(dir, "tablespace_map"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(b.String())
	return errors.Join(err, f.Sync(), f.Close())
}

func lookup(ctx context.Context, n tree.Node, names ...string) (tree.Node, error) {
	var err error
	for _, name := range names {
		if n, err = n.Lookup(ctx, name); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// without is a stored data directory without what is in its tablespaces.
type without struct {
	tree.Node
	spaces map[string]string
}

// Entries implements tree.Node.
func (w *without) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		for c, err := range w.Node.Entries(ctx, from) {
			if err == nil && c.Attr().Name == "pg_tblspc" {
				c = &less{c, w.spaces}
			}
			if !yield(c, err) {
				return
			}
		}
	}
}

// Lookup implements tree.Node.
func (w *without) Lookup(ctx context.Context, name string) (tree.Node, error) {
	c, err := w.Node.Lookup(ctx, name)
	if err == nil && name == "pg_tblspc" {
		c = &less{c, w.spaces}
	}
	return c, err
}

// less is a directory without some of its entries.
type less struct {
	tree.Node
	names map[string]string
}

// Entries implements tree.Node.
func (l *less) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		i := int64(0)
		for c, err := range l.Node.Entries(ctx, 0) {
			if err == nil && l.names[c.Attr().Name] != "" {
				continue
			}
			if i++; i > from && !yield(c, err) {
				return
			}
		}
	}
}

// Lookup implements tree.Node.
func (l *less) Lookup(ctx context.Context, name string) (tree.Node, error) {
	if l.names[name] != "" {
		return nil, &fs.PathError{Op: "lookup", Path: name, Err: fs.ErrNotExist}
	}
	return l.Node.Lookup(ctx, name)
}
