package chunkstore

import (
	"container/list"
	"context"
	"errors"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

type frameID struct {
	pack pack.Name
	n    uint32
}

// frame is a decoded frame. Its bytes never change.
type frame struct {
	chunks [][]byte
	starts []uint32
	proven []atomic.Pointer[proof] // as what each chunk was proven
	size   int64
}

// proof is what a chunk was proven to be: this ID, under this key.
type proof struct {
	id chunk.ID
	h  *chunk.Hasher
}

func newFrame(plain []byte) (*frame, error) {
	chunks, err := seal.ParseFrame(plain)
	if err != nil {
		return nil, err
	}
	f := &frame{chunks: chunks, starts: make([]uint32, len(chunks)), proven: make([]atomic.Pointer[proof], len(chunks))}
	at := uint32(len(plain))
	for i := len(chunks) - 1; i >= 0; i-- {
		at -= uint32(len(chunks[i]))
		f.starts[i] = at
	}
	f.size = int64(cap(plain)) + int64(len(chunks))*80
	return f, nil
}

// chunk returns the chunk at loc if it is the one named id.
func (f *frame) chunk(loc pack.Location, id chunk.ID, h *chunk.Hasher) ([]byte, bool) {
	i := sort.Search(len(f.starts), func(i int) bool { return f.starts[i] >= loc.Start })
	// Empty chunks do not occur, so a start is unique.
	if i == len(f.starts) || f.starts[i] != loc.Start || len(f.chunks[i]) != int(loc.Len) {
		return nil, false
	}
	if was := f.proven[i].Load(); was == nil || was.id != id || was.h != h {
		if h.Sum(f.chunks[i]) != id {
			return nil, false
		}
		f.proven[i].Store(&proof{id, h})
	}
	return f.chunks[i], true
}

// frameCache keeps decoded frames up to a limit in bytes, least recently used
// ones go first. However many ask for a frame, it is decoded once.
type frameCache struct {
	hits, misses atomic.Uint64

	mu    sync.Mutex
	limit int64
	bytes int64
	byID  map[frameID]*list.Element
	lru   *list.List // of *cached, most recent first
}

type cached struct {
	id   frameID
	done chan struct{} // closed when f or err is set
	f    *frame
	err  error
}

func newFrameCache(limit int64) *frameCache {
	return &frameCache{limit: limit, byID: map[frameID]*list.Element{}, lru: list.New()}
}

func (c *frameCache) has(id frameID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byID[id] != nil
}

func (c *frameCache) get(ctx context.Context, id frameID, decode func() (*frame, error)) (*frame, error) {
	for {
		c.mu.Lock()
		el := c.byID[id]
		if el == nil {
			break
		}
		c.lru.MoveToFront(el)
		c.mu.Unlock()
		e := el.Value.(*cached)
		select {
		case <-e.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if e.err == nil {
			c.hits.Add(1)
			return e.f, nil
		}
		if !isCancel(e.err) {
			return nil, e.err
		}
		// Whoever decoded it was cancelled; we were not.
	}
	e := &cached{id: id, done: make(chan struct{})}
	c.byID[id] = c.lru.PushFront(e)
	c.mu.Unlock()
	c.misses.Add(1)
	f, err := decode()
	c.mu.Lock()
	// Under the lock, for shrink must not see a frame that is not counted.
	e.f, e.err = f, err
	if err != nil {
		c.remove(e)
	} else {
		c.bytes += f.size
		c.shrink()
	}
	c.mu.Unlock()
	close(e.done)
	return f, err
}

func isCancel(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func (c *frameCache) remove(e *cached) {
	if el := c.byID[e.id]; el != nil && el.Value == e {
		c.lru.Remove(el)
		delete(c.byID, e.id)
	}
}

// shrink drops old frames; frames still being decoded have no size yet and
// stay.
func (c *frameCache) shrink() {
	for el := c.lru.Back(); el != nil && c.bytes > c.limit; {
		prev := el.Prev()
		if e := el.Value.(*cached); e.f != nil {
			c.bytes -= e.f.size
			c.lru.Remove(el)
			delete(c.byID, e.id)
		}
		el = prev
	}
}

func (c *frameCache) stats() (hits, misses uint64, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits.Load(), c.misses.Load(), c.bytes
}
