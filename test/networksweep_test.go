package test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter"
)

// pruning is a job that begins with a snapshot that was forgotten.
var pruning = job{"prune", false, func(t testing.TB, st *stage, b backend.Backend) error {
	r, err := repo.Open(t.Context(), b, options(t))
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = r.Prune(t.Context(), repo.PruneOptions{MaxRepack: -1})
	return err
}}

// TestNetworkSweep lets each request of a job go wrong, one at a time and in turn
// in each way, or be the last: what was stored stays, and doing it again brings it
// to its end. Nothing is tried again by itself.
func TestNetworkSweep(t *testing.T) {
	step := 7
	if slow() {
		step = 1
	}
	networkSweep(t, newBucket(t), step)
}

// TestServicesSweep does the same to a real server.
func TestServicesSweep(t *testing.T) {
	step := 11
	if slow() {
		step = 3
	}
	networkSweep(t, realBucket(t), step)
}

func networkSweep(t *testing.T, b *bucket, step int) {
	st, old := newStage(t, false), newStage(t, false)
	r := open(t, old.before)
	s := snapshot(t, r, live(t, old.now), func(o *snapshotter.Options) { o.Name = "other" })
	if _, err := r.Forget(t.Context(), []repo.ID{s.ID}); err != nil {
		t.Fatal(err)
	}
	for _, j := range []job{jobs[0], jobs[1], pruning} {
		st := st
		if j.name == pruning.name {
			st = old
		}
		t.Run(strings.ReplaceAll(j.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			for n := 1; st.breaks(t, b.fresh(), j, n); n += step {
				if t.Failed() {
					return
				}
			}
		})
	}
}

// breaks lets the n-th request of a job go wrong; false: there is none.
func (st *stage) breaks(t *testing.T, b *bucket, j job, n int) bool {
	direct := b.open(b.direct, 0)
	if !j.empty {
		for info, err := range st.before.List(t.Context(), "") {
			p, gerr := st.before.Get(t.Context(), info.Name, 0, -1)
			if err != nil || gerr != nil {
				t.Fatal(err, gerr)
			}
			if err := direct.Put(t.Context(), info.Name, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	var seen atomic.Int64
	kind := fault{"the end", func(c *call) { c.abort() }}
	if which := n / 3 % (len(faults) + 1); which < len(faults) {
		kind = faults[which]
	}
	one := fault{kind.name, func(c *call) {
		if at := seen.Add(1); at == int64(n) || at > int64(n) && kind.name == "the end" {
			kind.do(c)
			return
		}
		c.answer(c.deliver())
	}}
	l, url := newLine(t, b.handler, 1, 200*time.Millisecond, one)
	err := j.run(t, st, b.open("s3+"+url+b.path, time.Second))
	l.quiet()
	if seen.Load() < int64(n) {
		if err != nil {
			t.Errorf("without a fault: %v", err)
		}
		t.Logf("%d requests", seen.Load())
		return false
	}
	st.healthy(t, fmt.Sprintf("request %d, %s (%v)", n, kind.name, err), j, direct)
	return true
}
