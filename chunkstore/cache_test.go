package chunkstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// TestCacheCounts: what the cache says it holds is what it holds, whoever
// decodes, fails and is dropped meanwhile. The race detector watches.
func TestCacheCounts(t *testing.T) {
	const limit = 50_000
	c := newFrameCache(limit)
	fails := errors.New("no frame")
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for range 3000 {
				n := rnd.IntN(60)
				f, err := c.get(context.Background(), frameID{n: uint32(n)}, func() (*frame, error) {
					if rnd.IntN(10) == 0 {
						return nil, fails
					}
					return newFrame(seal.AppendFrame(nil, [][]byte{make([]byte, 100*n+1)}))
				})
				if err == nil && len(f.chunks[0]) != 100*n+1 {
					t.Errorf("frame %d has %d bytes", n, len(f.chunks[0]))
				}
				if err != nil && err != fails {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	sum := int64(0)
	for el := c.lru.Front(); el != nil; el = el.Next() {
		e := el.Value.(*cached)
		if c.byID[e.id] != el {
			t.Errorf("frame %d is in the list but not in the map", e.id.n)
		}
		sum += e.f.size
	}
	if sum != c.bytes || sum > limit || len(c.byID) != c.lru.Len() {
		t.Errorf("the cache holds %d bytes in %d frames, it says %d in %d, and may hold %d", sum, c.lru.Len(), c.bytes, len(c.byID), limit)
	}
}

// TestLeastRecentlyUsed: what was asked for last stays.
func TestLeastRecentlyUsed(t *testing.T) {
	one := func() (*frame, error) { return newFrame(seal.AppendFrame(nil, [][]byte{make([]byte, 1000)})) }
	f, err := one()
	if err != nil {
		t.Fatal(err)
	}
	c := newFrameCache(3 * f.size)
	for _, n := range []uint32{1, 2, 3, 1, 4} {
		if _, err := c.get(context.Background(), frameID{n: n}, one); err != nil {
			t.Fatal(err)
		}
	}
	for n, want := range map[uint32]bool{1: true, 2: false, 3: true, 4: true} {
		if c.has(frameID{n: n}) != want {
			t.Errorf("frame %d is kept: %t", n, !want)
		}
	}
}
