package snapshotter

import (
	"github.com/cutbankfs/cutbank/repo/tree"
)

// link is a file with several names: the first one that the walk meets is read,
// the others take over what it has.
type link struct {
	path    string
	left    uint32 // names not met yet
	done    bool
	drop    bool
	e       tree.Entry
	w       tree.Witness
	waiting []waiting
}

type waiting struct {
	d *dirJob
	s *slot
}

// linked reports whether the slot is a later name of a file met before; it is
// filled then, now or when the first name is known.
func (u *run) linked(d *dirJob, s *slot, path string) bool {
	key := inode{s.w.Dev, s.w.Ino}
	u.linkMu.Lock()
	l := u.links[key]
	if l == nil {
		u.links[key] = &link{path: path, left: s.e.Nlink - 1}
		u.linkMu.Unlock()
		return false
	}
	if !l.done {
		l.waiting = append(l.waiting, waiting{d, s})
	}
	done := l.done
	if l.left--; l.left == 0 && done {
		delete(u.links, key)
	}
	u.linkMu.Unlock()
	if done {
		u.fillLink(l, d, s)
	}
	return true
}

// linkDone says that the first name of a file is known.
func (u *run) linkDone(s *slot) {
	key := inode{s.w.Dev, s.w.Ino}
	u.linkMu.Lock()
	l := u.links[key]
	if l == nil || l.done {
		u.linkMu.Unlock()
		return
	}
	l.done, l.drop, l.e, l.w = true, s.drop, s.e, s.w
	ws := l.waiting
	l.waiting = nil
	if l.left == 0 {
		delete(u.links, key)
	}
	u.linkMu.Unlock()
	for _, w := range ws {
		u.fillLink(l, w.d, w.s)
	}
}

func (u *run) fillLink(l *link, d *dirJob, s *slot) {
	name := s.e.Name
	s.e, s.drop = l.e, l.drop
	s.e.Name, s.e.Link = name, l.path
	s.w = l.w
	s.w.Name = name
	if s.e.Kind == tree.File && !s.drop {
		u.p.Files.Add(1)
		u.p.Bytes.Add(uint64(s.e.Size))
	}
	d.done(s)
}
