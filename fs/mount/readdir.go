package mount

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"sort"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// Offsets in a listing: what the kernel hands back to go on behind an entry.
// 0 is the start, 1 is behind ".", 2 behind "..". In a stored directory the
// i-th child (from 0 on) ends at i+3, so any place is found in O(log n). In an
// upper directory a child ends at its ID, so a listing neither skips nor
// repeats an entry when others come and go.
const dots = 2

// listing fills the reply to READDIR, or READDIRPLUS with attributes.
type listing struct {
	*fuse.DirEntryList
	plus bool
	any  bool // something was added
}

// add reports whether the entry fitted. out is nil without attributes;
// untouched, it tells the kernel to look the entry up when it needs it.
func (l *listing) add(e fuse.DirEntry) (out *fuse.EntryOut, ok bool) {
	if l.plus {
		out = l.AddDirLookupEntry(e)
		ok = out != nil
	} else {
		ok = l.AddDirEntry(e)
	}
	l.any = l.any || ok
	return out, ok
}

// addDots adds "." and ".." where off is before them.
func (l *listing) addDots(off, self, parent uint64) bool {
	for i, e := range [dots]fuse.DirEntry{
		{Name: ".", Ino: self, Mode: syscall.S_IFDIR, Off: 1},
		{Name: "..", Ino: parent, Mode: syscall.S_IFDIR, Off: 2},
	} {
		if off <= uint64(i) {
			if _, ok := l.add(e); !ok {
				return false
			}
		}
	}
	return true
}

// ReadDir lists names. The kernel prefers ReadDirPlus.
func (s ops) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(request{cancel}, in, &listing{DirEntryList: out})
}

// ReadDirPlus lists names with attributes, so that nothing needs a LOOKUP.
func (s ops) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(request{cancel}, in, &listing{DirEntryList: out, plus: true})
}

func (s *Server) list(ctx context.Context, in *fuse.ReadIn, l *listing) fuse.Status {
	s.count.readdirs.Add(1)
	if s.upper(in.NodeId) {
		return s.listTop(in, l)
	}
	dir, err := s.node(ctx, in.NodeId)
	if err != nil {
		return s.fail(in.NodeId, dir, err)
	}
	if dir.node.Attr().Kind != tree.Dir {
		return fuse.ENOTDIR
	}
	number, ok := numberOf(dir.node)
	if !ok {
		return s.fail(in.NodeId, dir, errUnnumbered)
	}
	// Nobody uses the number of "..", and a node does not know its parent.
	if !l.addDots(in.Offset, dir.slot.inoOf(number), fuse.FUSE_UNKNOWN_INO) {
		return fuse.OK
	}
	if err := s.listStored(ctx, in, dir, l); err != nil && !l.any {
		return s.fail(in.NodeId, dir, err)
	}
	return fuse.OK // an error behind the entries comes with the next request
}

// listStored adds the children from the request's offset on, as many as fit.
//
// A child that cannot be read is listed by its name alone, so that it is seen,
// and looking at it gives the error. Whether an error is of a child or of the
// directory itself shows when the sequence goes on, so it is held back until
// then; the last error of a sequence counts as the directory's: a listing that
// may lack something never looks complete.
func (s *Server) listStored(ctx context.Context, in *fuse.ReadIn, dir known, l *listing) error {
	index := int64(max(in.Offset, dots) - dots)
	if index < 0 {
		return syscall.EINVAL
	}
	var held error
	for n, err := range dir.node.Entries(ctx, index) {
		if held != nil {
			name, ok := childOf(held)
			if !ok {
				return held
			}
			e := fuse.DirEntry{Name: name, Ino: fuse.FUSE_UNKNOWN_INO, Off: uint64(index) + dots}
			if _, ok := l.add(e); !ok {
				return nil
			}
			held = nil
		}
		if err != nil {
			held = err
		} else if ok, err := s.addChild(l, in.NodeId, dir, n, index); err != nil || !ok {
			return err
		}
		index++
	}
	return held
}

// addChild reports whether the child fitted.
func (s *Server) addChild(l *listing, dirID uint64, dir known, n tree.Node, index int64) (bool, error) {
	a := n.Attr()
	number, ok := numberOf(n)
	if !ok || !validName(a.Name) {
		return false, errUnnumbered
	}
	out, ok := l.add(fuse.DirEntry{Name: a.Name, Ino: dir.slot.inoOf(number), Mode: modeOf(a), Off: uint64(index) + dots + 1})
	if out != nil {
		s.fillEntry(out, dir.slot, known{node: n, slot: dir.slot, dir: dirID, index: index})
	}
	return ok, nil
}

// childOf returns the name of the child that an error is about.
func childOf(err error) (string, bool) {
	var pe *fs.PathError
	if !errors.As(err, &pe) {
		return "", false
	}
	name := path.Base(pe.Path)
	return name, validName(name)
}

func (s *Server) listTop(in *fuse.ReadIn, l *listing) fuse.Status {
	d := s.top.Load().nodes[in.NodeId]
	if d == nil {
		return fuse.Status(syscall.ESTALE)
	}
	if d.byName == nil {
		return fuse.ENOTDIR
	}
	up := d
	if d.parent != nil {
		up = d.parent
	}
	if !l.addDots(in.Offset, d.ino, up.ino) {
		return fuse.OK
	}
	i := sort.Search(len(d.list), func(i int) bool { return d.list[i].id > in.Offset })
	for _, n := range d.list[i:] {
		var a fuse.Attr
		n.fill(&a)
		out, ok := l.add(fuse.DirEntry{Name: n.name, Ino: a.Ino, Mode: a.Mode, Off: n.id})
		if !ok {
			break
		}
		if out != nil {
			n.fillEntry(out)
		}
	}
	return fuse.OK
}
