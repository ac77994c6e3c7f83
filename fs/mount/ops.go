package mount

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// ops answers the kernel. What is not written here, go-fuse answers with
// ENOSYS; none of that is of use for a read-only file system.
type ops struct {
	fuse.RawFileSystem
	*Server
}

// request is the context of one request: cancelled when the kernel says that
// the caller was interrupted, or when the mount ends. It is a single pointer,
// so making it a context.Context allocates nothing.
type request struct{ done <-chan struct{} }

func (r request) Deadline() (time.Time, bool) { return time.Time{}, false }
func (r request) Done() <-chan struct{}       { return r.done }
func (r request) Value(any) any               { return nil }
func (r request) Err() error {
	select {
	case <-r.done:
		return context.Canceled
	default:
		return nil
	}
}

// upper reports whether id is of the upper directories.
func (s *Server) upper(id uint64) bool { return s.fixed == nil && id <= numberMask }

// fail answers with err and logs damage, once per node. k is the node that the
// request is about, as far as it is known.
func (s *Server) fail(id uint64, k known, err error) fuse.Status {
	return s.failChild(id, k, "", err)
}

// failChild is fail for a child that could not be reached, and so has no ID.
func (s *Server) failChild(id uint64, k known, name string, err error) fuse.Status {
	n := errnoOf(err)
	switch n {
	case syscall.ENOENT, syscall.ENODATA, syscall.ERANGE, syscall.EINTR:
		return fuse.Status(n)
	}
	s.count.errors.Add(1)
	if n != syscall.EIO {
		return fuse.Status(n)
	}
	if isNew, last := s.seen.first(damagedNode{id, name}); isNew {
		s.count.damaged.Add(1)
		s.logf("%s: %v", s.describe(id, k, name), err)
		if last {
			s.logf("further damaged files are not logged: verify the repository")
		}
	}
	return fuse.EIO
}

// describe names a node as well as it can be: its snapshot and its own name.
// The error beside it holds the path where that is known.
func (s *Server) describe(id uint64, k known, name string) string {
	sl, _ := s.split(id)
	where := ""
	if sl != nil && sl.snap.Name != "" {
		where = sl.snap.Name + "/" + sl.snap.Time
	}
	if name == "" && k.node != nil {
		name = k.node.Attr().Name
	}
	if name != "" {
		if where != "" {
			where += ": "
		}
		where += quoteName(name)
	}
	if where == "" {
		return s.dir
	}
	return where
}

// Lookup finds a name. Absent names are cached like present ones.
func (s ops) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	s.count.lookups.Add(1)
	if len(name) > nameMax {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	out.EntryValid = forever
	if s.upper(h.NodeId) {
		return s.lookupTop(h.NodeId, name, out)
	}
	ctx := request{cancel}
	dir, err := s.node(ctx, h.NodeId)
	if err != nil {
		return s.fail(h.NodeId, dir, err)
	}
	child, err := dir.node.Lookup(ctx, name)
	if err != nil {
		if errnoOf(err) == syscall.ENOENT {
			return fuse.OK // with node ID 0: the kernel keeps the absence
		}
		return s.failChild(h.NodeId, dir, name, err)
	}
	if !s.fillEntry(out, dir.slot, s.placed(known{node: child, slot: dir.slot})) {
		return s.failChild(h.NodeId, dir, name, errUnnumbered)
	}
	return fuse.OK
}

var errUnnumbered = errors.New("a node has no usable number: the directory is damaged")

// fillEntry answers with a stored node and remembers it. It reports whether
// the node has a number that a node ID can hold.
func (s *Server) fillEntry(out *fuse.EntryOut, sl *slot, k known) bool {
	number, ok := numberOf(k.node)
	if !ok {
		return false
	}
	id := sl.idOf(number)
	out.NodeId, out.EntryValid, out.AttrValid = id, forever, forever
	fillAttr(&out.Attr, k.node.Attr(), sl.inoOf(number))
	s.recent.put(id, k)
	return true
}

func (s *Server) lookupTop(id uint64, name string, out *fuse.EntryOut) fuse.Status {
	dir := s.top.Load().nodes[id]
	if dir == nil {
		return fuse.Status(syscall.ESTALE)
	}
	if dir.byName == nil {
		return fuse.ENOTDIR
	}
	if n := dir.byName[name]; n != nil {
		n.fillEntry(out)
	}
	return fuse.OK
}

// fillEntry answers with a node of the upper directories. The attributes of a
// snapshot's root that is not open are preliminary, so the kernel asks again
// before it goes by them.
func (n *topNode) fillEntry(out *fuse.EntryOut) {
	out.EntryValid, out.AttrValid = forever, forever
	if n.slot == nil {
		out.NodeId = n.id
		n.fill(&out.Attr)
		return
	}
	out.NodeId = n.slot.idOf(0)
	if r := n.slot.root.Load(); r != nil {
		fillAttr(&out.Attr, (*r).Attr(), n.slot.inoOf(0))
		return
	}
	n.fill(&out.Attr)
	out.AttrValid = 0
}

// GetAttr answers stat.
func (s ops) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	s.count.getattrs.Add(1)
	out.AttrValid = forever
	if s.upper(in.NodeId) {
		n := s.top.Load().nodes[in.NodeId]
		if n == nil {
			return fuse.Status(syscall.ESTALE)
		}
		n.fill(&out.Attr)
		return fuse.OK
	}
	k, err := s.node(request{cancel}, in.NodeId)
	if err != nil {
		return s.fail(in.NodeId, k, err)
	}
	number, ok := numberOf(k.node)
	if !ok {
		return s.fail(in.NodeId, k, errUnnumbered)
	}
	fillAttr(&out.Attr, k.node.Attr(), k.slot.inoOf(number))
	return fuse.OK
}

// Readlink answers with a link's target.
func (s ops) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	s.count.readlinks.Add(1)
	if s.upper(h.NodeId) {
		n := s.top.Load().nodes[h.NodeId]
		switch {
		case n == nil:
			return nil, fuse.Status(syscall.ESTALE)
		case n.target == "":
			return nil, fuse.EINVAL
		}
		return []byte(n.target), fuse.OK
	}
	k, err := s.node(request{cancel}, h.NodeId)
	if err != nil {
		return nil, s.fail(h.NodeId, k, err)
	}
	if k.node.Attr().Kind != tree.Symlink {
		return nil, fuse.EINVAL
	}
	return []byte(k.node.Attr().Target), fuse.OK
}

// Read answers with all that was asked for, up to the end of the file, or
// with an error: the kernel takes fewer bytes for the end of the file and cuts
// its idea of the size.
func (s ops) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	s.count.reads.Add(1)
	if s.upper(in.NodeId) {
		return nil, fuse.Status(syscall.EISDIR)
	}
	ctx := request{cancel}
	k, err := s.node(ctx, in.NodeId)
	if err != nil {
		return nil, s.fail(in.NodeId, k, err)
	}
	if s.push != nil && in.Offset == 0 && k.dir != 0 {
		s.push.reading(k)
	}
	n, err := readFull(ctx, k.node, buf, int64(in.Offset))
	if err != nil {
		return nil, s.fail(in.NodeId, k, err)
	}
	s.count.bytesRead.Add(uint64(n))
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// readFull fills p from off on, up to the end of the file as its attributes
// tell it, and returns how much that is.
func readFull(ctx context.Context, n tree.Node, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, syscall.EINVAL
	}
	want := int(max(min(int64(len(p)), n.Attr().Size-off), 0))
	if want == 0 {
		return 0, nil
	}
	got, err := n.ReadAt(ctx, p[:want], off)
	switch {
	case got == want:
		return got, nil // io.EOF or not
	case err == nil || errors.Is(err, io.EOF):
		return 0, io.ErrUnexpectedEOF // the file is shorter than its size
	}
	return 0, err
}

// Lseek finds data and holes; the kernel does the other seeks itself.
func (s ops) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	s.count.lseeks.Add(1)
	if s.upper(in.NodeId) {
		return fuse.EINVAL
	}
	ctx := request{cancel}
	k, err := s.node(ctx, in.NodeId)
	if err != nil {
		return s.fail(in.NodeId, k, err)
	}
	off, err := seek(ctx, k.node, int64(in.Offset), in.Whence)
	if err != nil {
		return s.fail(in.NodeId, k, err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// seek is lseek(2) with SEEK_DATA or SEEK_HOLE: the first byte from off on
// that is in no hole, or in one; the end of the file counts as a hole. From the
// end on, and for data where none follows, it is ENXIO.
func seek(ctx context.Context, n tree.Node, off int64, whence uint32) (int64, error) {
	size := n.Attr().Size
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	if off < 0 || off >= size {
		return 0, syscall.ENXIO
	}
	x, ok := n.(tree.Extenter)
	if !ok {
		if whence == unix.SEEK_HOLE {
			return size, nil
		}
		return off, nil
	}
	for e, err := range x.Extents(ctx, off) {
		if err != nil {
			return 0, err
		}
		if (e.Kind == tree.Hole) == (whence == unix.SEEK_HOLE) && e.Off+e.Len > off {
			return max(e.Off, off), nil
		}
	}
	if whence == unix.SEEK_HOLE {
		return size, nil
	}
	return 0, syscall.ENXIO
}

// StatFs answers statfs: all space is used, none is free.
func (s ops) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: blockSize, Frsize: blockSize, NameLen: nameMax}
	if s.opt.Statfs != nil {
		bytes, files := s.opt.Statfs()
		out.Blocks = (bytes + blockSize - 1) / blockSize
		out.Files = files
	}
	return fuse.OK
}

// Forget does nothing: node IDs need no table.
func (ops) Forget(_, _ uint64) {}

// Open is not needed: what is stored has no state. The kernel notes the ENOSYS,
// asks no more and keeps the page cache from one open to the next.
func (s ops) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	s.count.opens.Add(1)
	return fuse.ENOSYS
}

// OpenDir is not needed, like Open; the kernel then keeps listings.
func (s ops) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	s.count.opens.Add(1)
	return fuse.ENOSYS
}

// Flush is not needed, like Open.
func (s ops) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status {
	s.count.opens.Add(1)
	return fuse.ENOSYS
}

// String names the file system for go-fuse.
func (ops) String() string { return subtype }
