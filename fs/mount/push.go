package mount

import (
	"math"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cutbankfs/cutbank/repo/tree"
)

const (
	pushWorkers = 2
	pushQueue   = 16        // runs waiting for a worker; more are dropped
	pushFile    = 512 << 10 // the largest file that is pushed
	pushDirs    = 1024      // directories remembered; two generations are kept

	firstFiles, firstBytes = 64, 512 << 10 // the first run in a directory: about two frames
	moreFiles              = 1024          // the longest run
	growth                 = 4             // from run to run, while somebody reads on in order

	nearby     = 16 // how far behind the last run a READ still counts as reading on
	fewMisses  = 4  // READs within what was pushed before it counts as evicted
	maxLead    = 32 // files left to a reader who is faster than the pusher
	pauseAfter = 64 // READs without a run after the kernel knew none of the files
)

// pusher puts the contents of small files into the page cache ahead of who
// reads a directory in order (tar, grep -r, rsync): one notification of 10 µs
// instead of a READ that somebody waits for.
//
// The moment is the first READ in a directory: the listing was answered by
// then, so the kernel knows the siblings. The work is done by goroutines that
// no handler waits for, since the kernel holds a page's lock while it waits
// for READ and takes it in the notification. Handlers only leave a note; when
// the queue is full they do not even that.
type pusher struct {
	srv      *Server
	runBytes int64
	jobs     chan pushRun
	workers  sync.WaitGroup

	mu         sync.Mutex // guards the maps and the fields of pushDir
	young, old map[uint64]*pushDir
}

// pushDir is what is known of the reading in one directory.
type pushDir struct {
	lo, hi  int64 // the indexes that were pushed: [lo, hi)
	files   int   // the length of the last run
	bytes   int64
	running bool
	left    int64 // files up to this index were left to the reader
	misses  int
	missed  int64 // the index of the last miss
	pause   int
	waits   bool         // Options.Far: one file was READ, and no other in order
	first   int64        // its index
	last    atomic.Int64 // the highest index that was asked for since the run began
}

// pushRun asks a worker to push files of a directory from an index on.
type pushRun struct {
	dir   uint64
	state *pushDir
	from  int64
	until int64 // what was pushed before begins here,
	hi    int64 // and ends here
	files int   // at most, and likewise
	bytes int64

	// The outcome.
	next    int64 // the index behind the last file dealt with
	left    int64 // files up to this index were left to the reader
	unknown bool  // the kernel knew not even the first
}

func newPusher(s *Server, budget int64) *pusher {
	p := &pusher{srv: s, runBytes: max(budget/pushWorkers, 1), jobs: make(chan pushRun, pushQueue)}
	for range pushWorkers {
		p.workers.Add(1)
		go p.work()
	}
	return p
}

// reading notes that a file is READ from its start, and starts a run if that
// looks useful. It never waits for a run.
func (p *pusher) reading(k known) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.dir(k.dir)
	if d.running {
		if k.index > d.last.Load() {
			d.last.Store(k.index)
		}
		return
	}
	if d.pause > 0 {
		d.pause--
		return
	}
	if p.srv.opt.Far && !d.follows(k.index) {
		return
	}
	r := pushRun{dir: k.dir, state: d, from: k.index + 1, until: math.MaxInt64, hi: math.MaxInt64}
	switch {
	case d.files == 0: // the first READ here
		d.restart(k.index)
	case k.index >= d.lo && k.index < d.hi:
		if k.node.Attr().Size > pushFile {
			return // it was left out, so this READ says nothing
		}
		if k.index <= d.left {
			return
		}
		if k.index != d.missed { // and not the same, damaged file again
			d.missed = k.index
			d.misses++
		}
		if d.misses <= fewMisses {
			return // overtaken by the reader
		}
		d.restart(k.index)
	case k.index >= d.hi && k.index-d.hi < nearby:
		d.files, d.bytes = min(d.files*growth, moreFiles), d.bytes*growth
	case k.index < d.lo: // reading elsewhere or backwards: up to what was pushed, and no further
		r.until, r.hi = d.lo-1, d.hi // the one before lo was READ
		d.restart(k.index)
	default:
		d.restart(k.index)
	}
	d.bytes = min(d.bytes, p.runBytes)
	d.misses = 0
	d.last.Store(k.index)
	r.files, r.bytes = d.files, d.bytes
	if r.from >= r.until {
		d.hi = r.hi
		return
	}
	select {
	case p.jobs <- r:
		d.running = true
	default:
	}
}

// follows reports whether a READ goes on where others were. Of the others it
// remembers the last, for the next to follow.
func (d *pushDir) follows(index int64) bool {
	if d.files > 0 && index >= d.lo && index-d.hi < nearby {
		return true
	}
	if d.waits && index > d.first && index-d.first < nearby {
		d.waits, d.files = false, 0
		return true
	}
	d.waits, d.first, d.files = true, index, 0
	return false
}

func (d *pushDir) restart(index int64) {
	d.lo, d.hi = index+1, index+1
	d.files, d.bytes = firstFiles, firstBytes
	d.left = 0
}

// dir returns the state of a directory. A state that is forgotten while its
// run is under way only makes a second run possible.
func (p *pusher) dir(id uint64) *pushDir {
	d := p.young[id]
	if d != nil {
		return d
	}
	if d = p.old[id]; d == nil {
		d = new(pushDir)
	}
	if p.young == nil || len(p.young) >= pushDirs {
		p.old, p.young = p.young, make(map[uint64]*pushDir)
	}
	p.young[id] = d
	return d
}

// work pushes until the mount ends.
func (p *pusher) work() {
	defer p.workers.Done()
	var buf []byte
	for {
		select {
		case <-p.srv.life.Done():
			return
		case r := <-p.jobs:
			if buf == nil {
				buf = make([]byte, pushFile)
			}
			p.srv.count.pushRunning.Add(1)
			p.run(&r, buf)
			p.srv.count.pushRunning.Add(^uint64(0))
			p.finish(&r)
		}
	}
}

// finish notes the outcome of a run.
func (p *pusher) finish(r *pushRun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := r.state
	d.running, d.hi, d.left = false, r.next, r.left
	if r.unknown {
		d.pause = pauseAfter
	}
}

// run pushes files from r.from on and leaves the outcome in r.
func (p *pusher) run(r *pushRun, buf []byte) {
	s := p.srv
	r.next = r.from
	dir, err := s.node(s.life, r.dir)
	if err != nil {
		return
	}
	files, pushed, lead := 0, int64(0), int64(1)
	for n, err := range dir.node.Entries(s.life, r.from) {
		if r.next >= r.until {
			break
		}
		if s.life.Err() != nil || files == r.files || pushed >= r.bytes {
			return
		}
		index := r.next
		r.next++
		// Whoever pushes the file that is just being READ waits for the page
		// and goes on in step with the reader, always too late. So get ahead.
		if last := r.state.last.Load(); index <= last {
			lead = min(lead*2, maxLead)
			r.left = last + lead
		}
		if err != nil || index <= r.left {
			continue
		}
		size, st := p.pushOne(dir.slot, n, buf)
		if st != fuse.OK {
			r.next, r.unknown = index, st == fuse.ENOENT && files == 0
			return
		}
		if size > 0 {
			pushed += size
			files++
		}
	}
	r.next = r.hi // the end of the directory, or of what was not pushed yet
}

// pushOne hands the contents of a small file to the kernel: all of them, as
// one piece, or nothing. A file with damaged or absent data is left to READ,
// which reports it.
func (p *pusher) pushOne(sl *slot, n tree.Node, buf []byte) (int64, fuse.Status) {
	s, a := p.srv, n.Attr()
	if a.Kind != tree.File || a.Size <= 0 {
		return 0, fuse.OK
	}
	number, ok := numberOf(n)
	if !ok || a.Size > pushFile {
		s.count.pushSkipped.Add(1)
		return 0, fuse.OK
	}
	got, err := readFull(s.life, n, buf[:a.Size], 0)
	if err != nil || int64(got) != a.Size {
		s.count.pushSkipped.Add(1)
		return 0, fuse.OK
	}
	st := s.fuse.InodeNotifyStoreCache(sl.idOf(number), 0, buf[:got])
	switch {
	case st == fuse.OK:
		s.count.pushedFiles.Add(1)
		s.count.pushedBytes.Add(uint64(got))
		return a.Size, fuse.OK
	case st == fuse.ENOENT:
		s.count.pushUnknown.Add(1)
	case s.life.Err() == nil:
		s.logf("the kernel does not take contents ahead of reading: %v", syscall.Errno(st))
	}
	return 0, st
}
