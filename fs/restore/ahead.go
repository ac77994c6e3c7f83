package restore

import (
	"context"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// What the walker holds back at most so that Prefetch can be told of it.
const (
	aheadJobs   = 1024
	aheadDirs   = 128      // that only jobs hold; each has a descriptor
	aheadChunks = maxQueue // however small they are
)

// lookahead is the names that the walker has come to and that no worker has
// been given yet: those that Prefetch was told of, and those behind them that it
// will be.
type lookahead struct {
	told, next []*job
	bytes      int64
	ids        []chunk.ID
}

// send hands a job to the workers: at once, or, where Prefetch is worth it, when
// it was told of the jobs behind it. Their order stays.
func (r *run) send(ctx context.Context, j *job) {
	if r.opt.Ahead <= 0 || r.opt.Prefetch == nil || r.opt.DryRun {
		r.give(ctx, j)
		return
	}
	l := &r.ahead
	l.next = append(l.next, j)
	l.look(ctx, j, r.window())
	dirs := r.dirs.Load() - int32(j.d.depth) - 1 // the walker itself has the others open
	if l.bytes >= r.window() || len(l.ids) >= aheadChunks || len(l.next) >= aheadJobs || dirs >= aheadDirs {
		r.turn(ctx)
	}
}

// look notes what a file that is not there yet needs, up to its first window:
// whoever restores it asks for what comes behind, and for what differs in a file
// that is there. Further names of a file become links, and need nothing.
func (l *lookahead) look(ctx context.Context, j *job, window int64) {
	n, ok := j.node.(tree.Extenter)
	if !ok || j.exists || j.adopt || j.node.Attr().Kind != tree.File || j.group != nil && j.group.seen > 1 {
		return
	}
	for e, err := range n.Extents(ctx, 0) {
		if err != nil || e.Off >= window || len(l.ids) >= aheadChunks {
			return // reading it tells
		}
		if e.Kind == tree.Data && !e.ID.IsZero() {
			l.ids = append(l.ids, e.ID)
			l.bytes += e.Len
		}
	}
}

// turn tells Prefetch of what was held back, and lets the workers have what it
// was told of before.
func (r *run) turn(ctx context.Context) {
	l := &r.ahead
	if len(l.ids) > 0 {
		r.opt.Prefetch(ctx, l.ids)
	}
	for _, j := range l.told {
		r.give(ctx, j)
	}
	clear(l.told)
	l.told, l.next = l.next, l.told[:0]
	l.ids, l.bytes = l.ids[:0], 0
}

// flush lets the workers have all that is held back.
func (r *run) flush(ctx context.Context) {
	for len(r.ahead.told)+len(r.ahead.next) > 0 {
		r.turn(ctx)
	}
}

func (r *run) give(ctx context.Context, j *job) {
	select {
	case r.jobs <- j:
	case <-ctx.Done():
		r.release(j.d)
	}
}

// window is how far ahead of reading Prefetch is told: for each worker's file
// twice, and for the walker twice. All share Ahead, for of what is asked for too
// early some is forgotten, and fetched again.
func (r *run) window() int64 {
	if r.opt.Ahead <= 0 {
		return window
	}
	return max(blockSize, r.opt.Ahead/int64(r.opt.Workers+1))
}
