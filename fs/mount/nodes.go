package mount

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

const (
	numberBits = 40 // of a node ID: a snapshot has fewer than 2^40 nodes
	numberMask = 1<<numberBits - 1
	maxSlot    = 1<<(64-numberBits) - 2 // the last one would hold go-fuse's own node ID
	inoBits    = 63 - numberBits        // of a snapshot's hash in an inode number
)

// slot is a snapshot in the mount. Its number is never used for another one.
type slot struct {
	num  uint64
	ino  uint64 // what stands above the node's number in inode numbers
	snap Snapshot

	root atomic.Pointer[tree.Numbered] // set when open

	mu      sync.Mutex
	opening *opening // nil: nobody opens it now
}

// opening is one call of Snapshot.Open that any number of handlers wait for.
type opening struct {
	done chan struct{}
	root tree.Numbered
	err  error
}

// inoOf returns the inode number of a node: never 0, and the same in every
// mount, unless two snapshots shown together have the same hash.
func (sl *slot) inoOf(number uint64) uint64 {
	return sl.ino<<numberBits | (number+1)&numberMask
}

// idOf returns the node ID of a node.
func (sl *slot) idOf(number uint64) uint64 {
	return sl.num<<numberBits | number
}

// open returns the root and calls Snapshot.Open when nobody has yet. An error
// is not kept: the next caller tries again. life is the context of the call,
// so that an interrupted caller does not fail the others.
func (sl *slot) open(ctx, life context.Context) (tree.Numbered, error) {
	if r := sl.root.Load(); r != nil {
		return *r, nil
	}
	sl.mu.Lock()
	if r := sl.root.Load(); r != nil {
		sl.mu.Unlock()
		return *r, nil
	}
	o := sl.opening
	if o == nil {
		o = &opening{done: make(chan struct{})}
		sl.opening = o
		go sl.run(o, life)
	}
	sl.mu.Unlock()
	select {
	case <-o.done:
		return o.root, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (sl *slot) run(o *opening, life context.Context) {
	o.root, o.err = sl.snap.Open(life)
	if o.err == nil && (o.root == nil || o.root.Attr().Kind != tree.Dir) {
		o.root, o.err = nil, syscall.ENOTDIR
	}
	sl.mu.Lock()
	if o.err == nil {
		sl.root.Store(&o.root)
	}
	sl.opening = nil
	sl.mu.Unlock()
	close(o.done)
}

// snapshotHash returns the bits of a snapshot's ID that go into inode
// numbers; never 0, which stands for the upper directories.
func snapshotHash(id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id))
	return max(h.Sum64()>>(64-inoBits), 1)
}

// known is a node with where it was met: index in the listing of dir. dir is
// 0 when no listing has shown it.
type known struct {
	node  tree.Node
	slot  *slot
	dir   uint64
	index int64
}

// node returns the node of an ID that is not of the upper directories. A
// snapshot that has vanished is ESTALE.
func (s *Server) node(ctx context.Context, id uint64) (known, error) {
	sl, number := s.split(id)
	if sl == nil {
		return known{}, syscall.ESTALE
	}
	if k, ok := s.recent.get(id); ok {
		return k, nil
	}
	root, err := sl.open(ctx, s.life)
	if err != nil {
		return known{}, err
	}
	if id == fuse.FUSE_ROOT_ID || id == sl.idOf(0) && s.fixed == nil {
		return known{node: root, slot: sl}, nil
	}
	n, err := root.ByNumber(ctx, number)
	if errors.Is(err, fs.ErrNotExist) { // the kernel has the number from us: damage must not look like absence
		err = fmt.Errorf("%w: node %d was listed and cannot be found", chunk.ErrCorrupt, number)
	}
	if err != nil {
		return known{}, err
	}
	k := s.placed(known{node: n, slot: sl})
	s.recent.put(id, k)
	return k, nil
}

// placed adds where a node is listed, if it knows that.
func (s *Server) placed(k known) known {
	p, ok := k.node.(tree.Placed)
	if !ok {
		return k
	}
	parent, index := p.Place()
	if parent == nil || parent.Number() > numberMask {
		return k
	}
	k.dir, k.index = k.slot.idOf(parent.Number()), index
	if r := k.slot.root.Load(); r != nil && s.fixed != nil && (*r).Number() == parent.Number() {
		k.dir = fuse.FUSE_ROOT_ID
	}
	return k
}

// split returns the snapshot of a node ID, nil if there is none, and the
// node's number in it.
func (s *Server) split(id uint64) (*slot, uint64) {
	if s.fixed != nil {
		return s.fixed, id & numberMask
	}
	return s.top.Load().slots[id>>numberBits], id & numberMask
}

// numberOf returns the number of a child; ok is false for a node without one
// or beyond what a node ID holds.
func numberOf(n tree.Node) (number uint64, ok bool) {
	m, ok := n.(tree.Numbered)
	if !ok {
		return 0, false
	}
	number = m.Number()
	return number, number <= numberMask
}

const (
	recentShards = 16
	recentNodes  = 512 // a generation of a shard; two generations are kept
)

// recent keeps the nodes used last, at most 2*recentShards*recentNodes, in two
// generations per shard: when the young one is full it becomes the old one,
// and what is used moves back to the young. That is nearly LRU, without a list.
type recent [recentShards]recentShard

type recentShard struct {
	mu         sync.Mutex
	young, old map[uint64]known
}

func (r *recent) get(id uint64) (known, bool) {
	sh := &r[id%recentShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	k, ok := sh.young[id]
	if ok {
		return k, true
	}
	if k, ok = sh.old[id]; ok {
		sh.add(id, k)
	}
	return k, ok
}

// put remembers a node. A node met without a place keeps the one it had.
func (r *recent) put(id uint64, k known) {
	sh := &r[id%recentShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if k.dir == 0 {
		was, ok := sh.young[id]
		if !ok {
			was = sh.old[id]
		}
		k.dir, k.index = was.dir, was.index
	}
	sh.add(id, k)
}

// drop forgets all nodes of a snapshot.
func (r *recent) drop(sl *slot) {
	for i := range r {
		sh := &r[i]
		sh.mu.Lock()
		mine := func(_ uint64, k known) bool { return k.slot == sl }
		maps.DeleteFunc(sh.young, mine)
		maps.DeleteFunc(sh.old, mine)
		sh.mu.Unlock()
	}
}

func (sh *recentShard) add(id uint64, k known) {
	if sh.young == nil || len(sh.young) >= recentNodes {
		sh.old, sh.young = sh.young, make(map[uint64]known, recentNodes)
	}
	sh.young[id] = k
}
