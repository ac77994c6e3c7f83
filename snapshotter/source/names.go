package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"io/fs"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// nameList holds the names of one directory in two allocations: a million
// names of 12 bytes take 20 MB.
type nameList struct {
	text []byte
	refs []uint64 // offset in text << 16 | length
}

func (l *nameList) add(name []byte) {
	l.refs = append(l.refs, uint64(len(l.text))<<16|uint64(len(name)))
	l.text = append(l.text, name...)
}

func (l *nameList) bytes(ref uint64) []byte {
	off := ref >> 16
	return l.text[off : off+ref&0xffff]
}

// sort sorts the names and leaves out what comes twice: a name that is moved
// while the directory is read may be listed at both places.
func (l *nameList) sort() {
	slices.SortFunc(l.refs, func(a, b uint64) int { return bytes.Compare(l.bytes(a), l.bytes(b)) })
	l.refs = slices.CompactFunc(l.refs, func(a, b uint64) bool { return bytes.Equal(l.bytes(a), l.bytes(b)) })
}

// direntBuffers are for getdents: large ones save system calls.
var direntBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// names lists the directory, sorted bytewise.
func (d *directory) names(ctx context.Context) (*nameList, error) {
	fd, err := d.acquire()
	if err != nil {
		return nil, err
	}
	defer d.release()
	// The descriptor has one position, and others may list too.
	d.listing.Lock()
	defer d.listing.Unlock()
	fail := func(err error) (*nameList, error) {
		return nil, &fs.PathError{Op: "readdir", Path: d.path(), Err: err}
	}
	if !d.listable() {
		return fail(unix.EACCES)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return fail(err)
	}
	buf := direntBuffers.Get().(*[64 << 10]byte)
	defer direntBuffers.Put(buf)
	list := new(nameList)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := unix.Getdents(fd, buf[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ENOENT: // the directory itself was removed
			n = 0
		case err != nil:
			return fail(err)
		}
		if n <= 0 {
			break
		}
		if err := list.parse(buf[:n]); err != nil {
			return fail(err)
		}
	}
	list.sort()
	return list, nil
}

// listable reports whether the descriptor, which the caller holds, can be
// listed.
func (d *directory) listable() bool {
	d.pool.mu.Lock()
	defer d.pool.mu.Unlock()
	return !d.h.pathOnly
}

// direntHeader is what stands before the name in a struct linux_dirent64:
// inode 8, offset 8, record length 2, type 1.
const direntHeader = 19

// parse adds the names of a buffer that getdents64 filled.
func (l *nameList) parse(p []byte) error {
	for len(p) > 0 {
		if len(p) < direntHeader {
			return unix.EIO
		}
		size := int(binary.NativeEndian.Uint16(p[16:]))
		if size < direntHeader || size > len(p) {
			return unix.EIO // only a broken file system says this
		}
		name := p[direntHeader:size]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		p = p[size:]
		switch string(name) {
		case "", ".", "..":
			continue
		}
		if bytes.IndexByte(name, '/') >= 0 {
			return unix.EIO
		}
		l.add(name)
	}
	return nil
}
