package postgresql

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// capture is what pg_basebackup has written: archives in scratch space, whose members
// are the files.
type capture struct {
	info  system.Info
	root  *system.Node
	dirs  map[string]*system.Node // by path; "" is the root
	files []*os.File
	page  int64
}

// base captures the whole server. pg_basebackup writes archives, not files: so the
// files keep the times that they have on the server, of which there may be a million.
func (s *System) base(ctx context.Context, info system.Info, opt system.CaptureOptions) (system.Capture, error) {
	page, err := strconv.ParseInt(info.Facts["block_size"], 10, 32)
	if err != nil || page < 512 {
		return nil, fmt.Errorf("a block size of %q is none", info.Facts["block_size"])
	}
	dir := filepath.Join(opt.Scratch, "base")
	args := []string{"-w", "-D", dir, "-Ft", "-X", "stream", "--no-sync", "-c", s.checkpoint, "-l", "cutbank " + opt.Name, "-d", conninfo(s.database)}
	if s.maxRate != "" {
		args = append(args, "-r", s.maxRate)
	}
	if err := s.tools.Run(ctx, "pg_basebackup", args...); err != nil {
		return nil, err
	}
	c := &capture{info: info, dirs: map[string]*system.Node{}, page: page}
	c.root = system.NewDir("", tree.TimeOf(opt.Now()))
	c.dirs[""] = c.root
	if err := c.read(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("what pg_basebackup has written: %w", err), c.Close(ctx, false))
	}
	return c, nil
}

// read makes the tree of the archives in a directory.
func (c *capture) read(dir string) error {
	if err := c.archive(filepath.Join(dir, "base.tar"), ""); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return err
	}
	for _, a := range archives {
		switch name := strings.TrimSuffix(filepath.Base(a), ".tar"); name {
		case "base":
		case "pg_wal":
			err = c.archive(a, "pg_wal")
		default: // a tablespace's, named by its OID
			err = c.archive(a, "pg_tblspc/"+name)
		}
		if err != nil {
			return err
		}
	}
	f, err := c.open(filepath.Join(dir, "backup_manifest"))
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	version := c.root.Child("PG_VERSION")
	control := c.dirs["global"]
	if version == nil || control == nil || control.Child("pg_control") == nil {
		return fmt.Errorf("PG_VERSION or pg_control is missing: %w", system.ErrIncomplete)
	}
	manifest := system.NewFile("backup_manifest", tree.TimeOf(st.ModTime()), f, st.Size(), nil)
	own := version.Attr()
	manifest.SetOwner(0o600, own.UID, own.GID)
	c.root.Add(manifest)
	c.root.SetOwner(0o700, own.UID, own.GID)
	return c.root.Seal()
}

func (c *capture) open(name string) (*os.File, error) {
	f, err := os.Open(name)
	if err == nil {
		c.files = append(c.files, f)
	}
	return f, err
}

// archive adds the members of an archive, below a directory.
func (c *capture) archive(name, below string) error {
	f, err := c.open(name)
	if err != nil {
		return err
	}
	// The reader takes headers alone from the file, and seeks past contents: where
	// the file stands after a header a member's contents begin.
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if err := c.member(h, path.Join(below, path.Clean("/" + h.Name)[1:]), f, at); err != nil {
			return err
		}
	}
}

func (c *capture) member(h *tar.Header, p string, f io.ReaderAt, at int64) error {
	mtime := tree.TimeOf(h.ModTime)
	mode, uid, gid := uint32(h.Mode)&0o7777, uint32(h.Uid), uint32(h.Gid)
	switch {
	case h.Typeflag == tar.TypeDir:
		c.dir(p, mtime).SetOwner(mode, uid, gid)
		return nil
	case h.Typeflag == tar.TypeSymlink && path.Dir(p) == "pg_tblspc":
		c.dir(p, mtime).SetOwner(mode|0o700, uid, gid) // its archive has what is in it
		return nil
	case h.Typeflag != tar.TypeReg:
		return fmt.Errorf("%q is neither file nor directory", p)
	}
	data := io.NewSectionReader(f, at, h.Size)
	n := system.NewFile(path.Base(p), mtime, data, h.Size, nil)
	if inPages(p) && h.Size%c.page == 0 {
		n = system.NewPaged(path.Base(p), mtime, data, h.Size, c.page)
	}
	n.SetOwner(mode, uid, gid)
	c.dir(path.Dir(p), mtime).Add(n)
	return nil
}

// inPages reports whether a file is one whose pages are written in place.
func inPages(p string) bool {
	return strings.HasPrefix(p, "base/") || strings.HasPrefix(p, "global/") || strings.HasPrefix(p, "pg_tblspc/")
}

// dir returns the node of a directory, with its parents.
func (c *capture) dir(p string, mtime tree.Time) *system.Node {
	if p == "." || p == "/" {
		p = ""
	}
	if d := c.dirs[p]; d != nil {
		return d
	}
	d := system.NewDir(path.Base(p), mtime)
	d.SetOwner(0o700, 0, 0)
	c.dirs[p] = d
	c.dir(path.Dir(p), mtime).Add(d)
	return d
}

// Root implements system.Capture.
func (c *capture) Root() tree.Node { return c.root }

// Finish implements system.Capture.
func (c *capture) Finish(context.Context) (system.Info, error) { return c.info, nil }

// Close implements system.Capture.
func (c *capture) Close(context.Context, bool) error {
	var err error
	for _, f := range c.files {
		err = errors.Join(err, f.Close())
	}
	c.files = nil
	return err
}
