package mount

import (
	"sync"
	"sync/atomic"
)

// Stats counts what a mount has done so far.
type Stats struct {
	Lookups, GetAttrs, Readlinks      uint64 // requests of the kernel
	Reads, ReadDirs, Lseeks, Xattrs   uint64
	Opens                             uint64 // Open, OpenDir and Flush: about one each in a mount's life
	Errors                            uint64 // requests answered with an error other than "no such name" or "no such attribute"
	Damaged                           uint64 // nodes found damaged
	BytesRead                         uint64 // in answer to READ
	PushedFiles, PushedBytes          uint64 // put into the page cache ahead of READ
	PushUnknown, PushSkipped, PushNow uint64 // pushes the kernel had no use for; files not pushed; runs under way
}

type counters struct {
	lookups, getattrs, readlinks          atomic.Uint64
	reads, readdirs, lseeks, xattrs       atomic.Uint64
	opens, errors, damaged                atomic.Uint64
	bytesRead, pushedFiles, pushedBytes   atomic.Uint64
	pushUnknown, pushSkipped, pushRunning atomic.Uint64
}

// Stats returns the counts at this moment.
func (s *Server) Stats() Stats {
	c := &s.count
	return Stats{
		Lookups: c.lookups.Load(), GetAttrs: c.getattrs.Load(), Readlinks: c.readlinks.Load(),
		Reads: c.reads.Load(), ReadDirs: c.readdirs.Load(), Lseeks: c.lseeks.Load(), Xattrs: c.xattrs.Load(),
		Opens: c.opens.Load(), Errors: c.errors.Load(), Damaged: c.damaged.Load(),
		BytesRead: c.bytesRead.Load(), PushedFiles: c.pushedFiles.Load(), PushedBytes: c.pushedBytes.Load(),
		PushUnknown: c.pushUnknown.Load(), PushSkipped: c.pushSkipped.Load(), PushNow: c.pushRunning.Load(),
	}
}

// maxDamageLog bounds how many damaged nodes are told apart.
const maxDamageLog = 4096

// damagedNode is a node, or the child of that name that could not be reached.
type damagedNode struct {
	id   uint64
	name string
}

// damageLog remembers which damaged nodes were logged.
type damageLog struct {
	mu    sync.Mutex
	nodes map[damagedNode]struct{}
}

// first reports whether id is new, and whether it is the last one to be told
// apart.
func (d *damageLog) first(id damagedNode) (isNew, last bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.nodes[id]; ok || len(d.nodes) >= maxDamageLog {
		return false, false
	}
	if d.nodes == nil {
		d.nodes = map[damagedNode]struct{}{}
	}
	d.nodes[id] = struct{}{}
	return true, len(d.nodes) == maxDamageLog
}
