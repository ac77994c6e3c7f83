package mount

import (
	"cmp"
	"context"
	"encoding/hex"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// Snapshot is one stored snapshot in the mount's upper directories.
type Snapshot struct {
	ID      string    // hexadecimal; shown as ids/<ID>
	Name    string    // the first level
	Time    string    // the second level, unique per Name: 2026-11-21T10.00.00Z, -2 and so on if taken
	Tags    []string  // shown as tags/<tag>/<Name>/<Time>
	ModTime tree.Time // shown for the snapshot's root until it is open, and for what lists it

	// Open returns the root directory, whose Number is 0. It is called at
	// first use, by one goroutine at a time, and again after an error; the
	// root is kept until the snapshot vanishes. The context ends with the
	// mount.
	Open func(ctx context.Context) (tree.Numbered, error)
}

// top is the upper directories at one moment. It never changes: Update builds
// the next one and swaps it in, so handlers need no lock.
type top struct {
	nodes map[uint64]*topNode // by node ID, without the snapshots' roots
	slots map[uint64]*slot    // by slot number
	root  *topNode
}

// topNode is a directory, a symlink or the place of a snapshot's root.
type topNode struct {
	id     uint64 // never used twice; also the node's place in its listing
	ino    uint64
	name   string
	mtime  tree.Time
	parent *topNode
	target string // of a symlink
	slot   *slot  // of a snapshot's place

	byName map[string]*topNode // of a directory
	list   []*topNode          // the same, by id: a listing goes on where it was, whatever came or went
}

// change is what the kernel must forget of one directory.
type change struct {
	dir   uint64
	names []string
}

// Update shows these snapshots and no others. It returns after the kernel has
// been told, so what is new is visible and what is gone is invisible to
// whoever looks after that; open files of a vanished snapshot give ESTALE for
// what is not cached. Snapshots that cannot be shown (a name with a slash, a
// time that is taken) are logged and left out. Safe for concurrent use. A
// mount with Options.Root has no upper directories: nothing happens.
func (s *Server) Update(snaps []Snapshot) {
	if s.fixed != nil {
		return
	}
	s.updateMu.Lock() // no handler takes it
	defer s.updateMu.Unlock()
	old := s.top.Load()
	b := topBuilder{s: s, old: old, now: tree.TimeOf(time.Now())}
	t := b.build(snaps)
	s.top.Store(t)
	s.invalidate(b.changes)
	for n, sl := range old.slots {
		if t.slots[n] == nil {
			s.recent.drop(sl)
		}
	}
}

// invalidate makes the kernel forget what changed. Both calls are needed: the
// first drops a name, also a cached absence; the second a listing and the
// attributes, also where the kernel had nothing of that name. The order of
// swapping first and telling then makes it safe: the kernel holds the
// directory's lock while it waits for a LOOKUP, and a notification takes it.
func (s *Server) invalidate(changes []change) {
	for _, c := range changes {
		for _, name := range c.names {
			s.fuse.EntryNotify(c.dir, name) // ENOENT: the kernel does not know it
		}
		s.fuse.InodeNotify(c.dir, 0, 0)
	}
}

// topBuilder makes a top out of the one before.
type topBuilder struct {
	s       *Server
	old     *top
	t       *top
	now     tree.Time
	changes []change
}

func (b *topBuilder) build(snaps []Snapshot) *top {
	b.t = &top{nodes: map[uint64]*topNode{}, slots: map[uint64]*slot{}}
	b.t.root = &topNode{byName: map[string]*topNode{}}
	b.t.root.dir("ids")
	b.t.root.dir("tags")
	was, inos := map[string]*slot{}, map[uint64]bool{}
	if b.old != nil {
		for _, sl := range b.old.slots {
			was[sl.snap.key()] = sl
			inos[sl.ino] = true
		}
	}
	for _, sn := range snaps {
		if why := b.refuse(sn); why != "" {
			b.s.logf("snapshot %q is not shown: %s", sn.ID, why)
			continue
		}
		sl := was[sn.key()]
		if sl == nil {
			if sl = b.s.newSlot(sn, inos); sl == nil {
				b.s.logf("snapshot %q is not shown: this mount has shown too many, mount again", sn.ID)
				continue
			}
		}
		b.t.slots[sl.num] = sl
		b.place(sn, sl)
	}
	var old *topNode
	if b.old != nil {
		old = b.old.root
	}
	b.adopt(b.t.root, old, "")
	return b.t
}

// refuse says why a snapshot cannot be shown, or nothing.
func (b *topBuilder) refuse(sn Snapshot) string {
	switch _, err := hex.DecodeString(sn.ID); {
	case err != nil || sn.ID == "" || len(sn.ID) > nameMax:
		return "its ID is not hexadecimal"
	case b.t.root.byName["ids"].byName[sn.ID] != nil:
		return "its ID is there twice"
	case !validName(sn.Name) || sn.Name == "ids" || sn.Name == "tags":
		return "its name cannot be a directory"
	case !validName(sn.Time) || sn.Time == "latest":
		return "its time cannot be a directory"
	}
	if d := b.t.root.byName[sn.Name]; d != nil && d.byName[sn.Time] != nil {
		return "its name and time are taken"
	}
	return ""
}

// place adds everything that leads to one snapshot.
func (b *topBuilder) place(sn Snapshot, sl *slot) {
	root := b.t.root
	d := root.dir(sn.Name)
	d.add(&topNode{name: sn.Time, slot: sl, mtime: sn.ModTime})
	if l := d.byName["latest"]; l == nil || newer(sn.Time, l.target) {
		d.add(&topNode{name: "latest", target: sn.Time, mtime: sn.ModTime})
	}
	to := sn.Name + "/" + sn.Time
	root.byName["ids"].add(&topNode{name: sn.ID, target: "../" + to, mtime: sn.ModTime})
	for _, tag := range sn.Tags {
		if !validName(tag) {
			b.s.logf("tag %q of snapshot %q is not shown: it cannot be a directory", tag, sn.ID)
			continue
		}
		root.byName["tags"].dir(tag).dir(sn.Name).add(&topNode{name: sn.Time, target: "../../../" + to, mtime: sn.ModTime})
	}
}

// adopt gives n and all below it the IDs they had, or new ones, and notes what
// changed. A link whose target changed is a new node, since the kernel keeps
// targets for ever.
func (b *topBuilder) adopt(n, old *topNode, path string) {
	switch {
	case n == b.t.root:
		n.id, n.ino = fuse.FUSE_ROOT_ID, fuse.FUSE_ROOT_ID
	case old != nil && old.target == n.target && old.slot == n.slot && (old.byName == nil) == (n.byName == nil):
		n.id, n.ino = old.id, old.ino
	default:
		b.s.lastTop++
		n.id, n.ino, old = b.s.lastTop, pathIno(path), nil
	}
	if n.slot == nil {
		b.t.nodes[n.id] = n
	}
	if n.byName == nil {
		return
	}
	c := change{dir: n.id}
	for name, child := range n.byName {
		var was *topNode
		if old != nil {
			was = old.byName[name]
		}
		b.adopt(child, was, path+"/"+name)
		if was == nil || was.id != child.id {
			c.names = append(c.names, name)
		}
		if n.mtime.Compare(child.mtime) < 0 {
			n.mtime = child.mtime
		}
		n.list = append(n.list, child)
	}
	if n.mtime == (tree.Time{}) {
		n.mtime = b.now
	}
	slices.SortFunc(n.list, func(x, y *topNode) int { return cmp.Compare(x.id, y.id) })
	if old == nil {
		return
	}
	for name := range old.byName {
		if n.byName[name] == nil {
			c.names = append(c.names, name)
		}
	}
	n.mtime = old.mtime
	if len(c.names) > 0 {
		n.mtime = b.now
		b.changes = append(b.changes, c)
	}
}

// dir returns the directory of that name and makes it if it is not there.
func (n *topNode) dir(name string) *topNode {
	if d := n.byName[name]; d != nil {
		return d
	}
	return n.add(&topNode{name: name, byName: map[string]*topNode{}})
}

func (n *topNode) add(child *topNode) *topNode {
	child.parent = n
	n.byName[child.name] = child
	return child
}

// newSlot gives a snapshot the next slot, nil if there is none left. inos
// holds the hashes in use: of two equal ones the later takes the next free.
func (s *Server) newSlot(sn Snapshot, inos map[uint64]bool) *slot {
	if s.lastSlot >= maxSlot {
		return nil
	}
	s.lastSlot++
	ino := snapshotHash(sn.ID)
	for inos[ino] {
		ino = max((ino+1)%(1<<inoBits), 1)
	}
	inos[ino] = true
	return &slot{num: s.lastSlot, ino: ino, snap: sn}
}

// key tells snapshots apart: a root never moves to another directory.
func (sn Snapshot) key() string { return sn.ID + "\x00" + sn.Name + "\x00" + sn.Time }

// newer compares two times of a name: 2026-11-21T10.00.00Z before
// 2026-11-21T10.00.00Z-2 before 2026-11-21T10.00.00Z-10.
func newer(x, y string) bool {
	xt, xn, _ := strings.Cut(x, "Z")
	yt, yn, _ := strings.Cut(y, "Z")
	return cmp.Or(cmp.Compare(xt, yt), cmp.Compare(len(xn), len(yn)), cmp.Compare(xn, yn)) > 0
}

// pathIno is the inode number of an upper directory or link: the low 40 bits
// of a hash of its path, so it is the same in every mount.
func pathIno(path string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(path))
	return max(h.Sum64()&numberMask, fuse.FUSE_ROOT_ID+1)
}

// validName reports whether the kernel takes s as a name in a directory.
func validName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= nameMax && !strings.ContainsAny(s, "/\x00")
}

// fill puts the node's attributes into the kernel's form. A snapshot's place
// shows what is known before it is open: handlers of the upper directories do
// not wait for that.
func (n *topNode) fill(out *fuse.Attr) {
	a := tree.Attr{Kind: tree.Dir, Mode: 0o555, Mtime: n.mtime}
	ino := n.ino
	switch {
	case n.slot != nil:
		ino = n.slot.inoOf(0)
	case n.byName == nil:
		a.Kind, a.Mode, a.Target = tree.Symlink, 0o777, n.target
	}
	fillAttr(out, &a, ino)
}
