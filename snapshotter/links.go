package snapshotter

import (
	"context"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// link is a file with several names: the first one that the walk meets is read,
// the others take over what it has. Where the first vanishes, or turns out to
// be another file by then, the next one takes its place.
type link struct {
	key     inode
	left    uint32 // names not met yet
	done    bool
	path    string // of the first name
	e       tree.Entry
	w       tree.Witness
	waiting []*job // later names
}

// linked reports whether the job is for a later name of a file met before; it is
// filled then, now or when the first name is known.
func (u *run) linked(j *job) bool {
	key := inode{j.s.w.Dev, j.s.w.Ino, j.bare}
	u.linkMu.Lock()
	l := u.links[key]
	if l == nil {
		l = &link{key: key, path: j.path, left: j.s.e.Nlink - 1}
		u.links[key] = l
		j.s.link = l
		u.linkMu.Unlock()
		return false
	}
	if !l.done {
		l.waiting = append(l.waiting, j)
	}
	done := l.done
	if l.left--; l.left == 0 && done {
		delete(u.links, key)
	}
	u.linkMu.Unlock()
	if done && !l.fits(j.s) {
		return false // the inode is another file's by now: read it by itself
	}
	if done {
		u.fillLink(l, j)
	}
	return true
}

// fits reports whether a later name, as it was listed, is the file that the
// link's first name was read as.
func (l *link) fits(s *slot) bool {
	return s.e.Kind == l.e.Kind && s.e.Mtime == l.e.Mtime && (s.e.Kind != tree.File || s.e.Size == l.e.Size || l.e.Changed)
}

// settle says that the first name of a file is known. If that was no use, the
// next job is returned, which is to be done in its place; and so are waiters
// that turn out to be another file.
func (u *run) settle(s *slot) (again []*job) {
	l := s.link
	s.link = nil
	u.linkMu.Lock()
	if s.drop || s.w.Dev != l.key.dev || s.w.Ino != l.key.ino {
		defer u.linkMu.Unlock()
		if len(l.waiting) == 0 {
			if u.links[l.key] == l {
				delete(u.links, l.key) // a name met later is the first one
			}
			return nil
		}
		j := l.waiting[0]
		l.waiting = l.waiting[1:]
		l.path, j.s.link = j.path, l
		return []*job{j}
	}
	l.done, l.e, l.w = true, s.e, s.w
	ws := l.waiting
	l.waiting = nil
	if l.left == 0 {
		delete(u.links, l.key)
	}
	u.linkMu.Unlock()
	for _, j := range ws {
		if l.fits(j.s) {
			u.fillLink(l, j)
		} else {
			again = append(again, j)
		}
	}
	return again
}

func (u *run) fillLink(l *link, j *job) {
	s := j.s
	name := s.e.Name
	s.e, s.w = l.e, l.w
	s.e.Name, s.e.Link, s.w.Name = name, l.path, name
	if s.e.Kind == tree.File {
		u.p.Files.Add(1)
		u.p.Bytes.Add(uint64(s.e.Size))
	}
	j.d.done(s)
}

// finish makes a slot known, and with it the hard links that wait for it. again
// does the job of one that has to take its place.
func (u *run) finish(ctx context.Context, j *job, again func(context.Context, *job)) {
	var next []*job
	if j.s.link != nil {
		next = u.settle(j.s)
	}
	j.d.done(j.s)
	for _, n := range next {
		again(ctx, n)
	}
}
