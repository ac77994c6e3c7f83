package source

import (
	"io/fs"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxHandles is how many directories of one tree stay open beyond the system
// call that needed them. Deep walks reopen beyond it; common trees never do.
const maxHandles = 64

// handles keeps the open directories of one tree. See "Descriptors" in the
// package documentation.
type handles struct {
	mu   sync.Mutex
	root *directory   // pinned by every running iteration
	open []*directory // those with a descriptor, in no order
	tick uint64       // counts uses; the smallest one is closed first
}

// handle is what handles knows of a directory. All fields are guarded by
// handles.mu.
type handle struct {
	fd       int  // -1 while closed
	pins     int  // users that need fd to stay open
	pathOnly bool // opened with O_PATH: may be searched, not listed
	known    bool // dev and ino are set
	dev, ino uint64
	used     uint64
}

// acquire opens the directory unless it is open and keeps it so until release.
func (d *directory) acquire() (int, error) {
	p := d.pool
	p.mu.Lock()
	if d.h.fd >= 0 {
		fd := d.pin()
		p.mu.Unlock()
		return fd, nil
	}
	p.mu.Unlock()

	h, err := d.open()
	if err != nil {
		return -1, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case d.h.known && (d.h.dev != h.dev || d.h.ino != h.ino):
		unix.Close(h.fd)
		return -1, &fs.PathError{Op: "open", Path: d.path(), Err: unix.ESTALE}
	case d.h.fd >= 0: // another goroutine was faster
		unix.Close(h.fd)
	default:
		h.pins = d.h.pins
		d.h = h
		p.open = append(p.open, d)
	}
	fd := d.pin()
	p.closeIdle(maxHandles)
	return fd, nil
}

// pin counts one user more. The caller holds the lock.
func (d *directory) pin() int {
	d.pool.tick++
	d.h.used = d.pool.tick
	d.h.pins++
	return d.h.fd
}

// release gives back what acquire or hold took.
func (d *directory) release() {
	p := d.pool
	p.mu.Lock()
	d.h.pins--
	if p.root.h.pins == 0 {
		p.closeIdle(0)
	}
	p.mu.Unlock()
}

// closeIdle closes directories nobody uses, the longest unused first, until at
// most limit are open. The caller holds the lock.
func (p *handles) closeIdle(limit int) {
	for len(p.open) > limit {
		oldest := -1
		for i, d := range p.open {
			if d.h.pins == 0 && (oldest < 0 || d.h.used < p.open[oldest].h.used) {
				oldest = i
			}
		}
		if oldest < 0 {
			return
		}
		d := p.open[oldest]
		unix.Close(d.h.fd)
		d.h.fd = -1
		last := len(p.open) - 1
		p.open[oldest] = p.open[last]
		p.open[last] = nil
		p.open = p.open[:last]
	}
}

// open opens the directory, parents that are closed first. The recursion is as
// deep as the tree, and holds one descriptor at each moment beside the new one.
func (d *directory) open() (handle, error) {
	at, name := unix.AT_FDCWD, d.rootPath
	if d.parent != nil {
		var err error
		if at, err = d.parent.acquire(); err != nil {
			return handle{}, err
		}
		defer d.parent.release()
		name = d.attr.Name
	}
	h := handle{known: true}
	var err error
	if d.searchOnly {
		// The directory of a root that is no directory: its path is the
		// caller's word, symlinks included, and searching it is enough.
		h.pathOnly = true
		h.fd, err = openat(at, name, unix.O_PATH|unix.O_DIRECTORY)
	} else {
		h.fd, err = openQuietly(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err == unix.EACCES {
			h.pathOnly = true
			h.fd, err = openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		}
	}
	if err != nil {
		return handle{}, &fs.PathError{Op: "open", Path: d.path(), Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		unix.Close(h.fd)
		return handle{}, &fs.PathError{Op: "stat", Path: d.path(), Err: err}
	}
	h.dev, h.ino = uint64(st.Dev), st.Ino
	return h, nil
}

// path returns the path for messages: the root's as Open got it, and below.
func (d *directory) path() string {
	var names []string
	for d.parent != nil {
		names = append(names, d.attr.Name)
		d = d.parent
	}
	var b strings.Builder
	b.WriteString(strings.TrimRight(d.rootPath, "/"))
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(names[i])
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

// openQuietly opens without touching the access time where that is allowed.
func openQuietly(at int, name string, flags int) (int, error) {
	fd, err := openat(at, name, flags|unix.O_NOATIME)
	if err == unix.EPERM {
		fd, err = openat(at, name, flags)
	}
	return fd, err
}

func openat(at int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(at, name, flags|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
