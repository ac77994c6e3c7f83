package mount

import (
	"context"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// GetXAttr answers with a value: its size, and its bytes if dest holds them.
// ERANGE with an empty dest is how go-fuse asks for the size alone.
func (s ops) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	s.count.xattrs.Add(1)
	xs, st := s.xattrs(request{cancel}, h)
	if !st.Ok() {
		return 0, st
	}
	for _, x := range xs {
		if x.Name == name {
			if len(dest) < len(x.Value) {
				return uint32(len(x.Value)), fuse.ERANGE
			}
			return uint32(copy(dest, x.Value)), fuse.OK
		}
	}
	return 0, fuse.ENODATA
}

// ListXAttr answers with the names, each ended by a NUL. The trusted ones are
// for root only; the kernel guards their values but not their names.
func (s ops) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	s.count.xattrs.Add(1)
	xs, st := s.xattrs(request{cancel}, h)
	if !st.Ok() {
		return 0, st
	}
	shown := func(x tree.Xattr) bool { return h.Uid == 0 || !strings.HasPrefix(x.Name, "trusted.") }
	size := 0
	for _, x := range xs {
		if shown(x) {
			size += len(x.Name) + 1
		}
	}
	if len(dest) < size {
		return uint32(size), fuse.ERANGE
	}
	dest = dest[:0]
	for _, x := range xs {
		if shown(x) {
			dest = append(append(dest, x.Name...), 0)
		}
	}
	return uint32(size), fuse.OK
}

func (s *Server) xattrs(ctx context.Context, h *fuse.InHeader) ([]tree.Xattr, fuse.Status) {
	if s.upper(h.NodeId) {
		return nil, fuse.OK
	}
	k, err := s.node(ctx, h.NodeId)
	if err != nil {
		return nil, s.fail(h.NodeId, k, err)
	}
	xs, err := k.node.Xattrs(ctx)
	if err != nil {
		return nil, s.fail(h.NodeId, k, err)
	}
	return xs, fuse.OK
}

// quoteName makes a name fit for a line of a log.
func quoteName(name string) string {
	q := strconv.Quote(name)
	if q[1:len(q)-1] == name {
		return name
	}
	return q
}
