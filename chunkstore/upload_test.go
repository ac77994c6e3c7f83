package chunkstore_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// distant is a Mem across a network: Puts take a while and some answers are
// lost, with what was put or after it.
type distant struct {
	*backend.Mem
	lose  func(n int) (done, lost bool)
	puts  atomic.Int64
	under atomic.Int64 // way
	most  atomic.Int64
	mu    sync.Mutex
	names map[string]int
}

func (d *distant) Transfers() int { return 4 }

func (d *distant) Put(ctx context.Context, name string, p []byte) error {
	n := d.under.Add(1)
	defer d.under.Add(-1)
	for m := d.most.Load(); n > m && !d.most.CompareAndSwap(m, n); m = d.most.Load() {
	}
	d.mu.Lock()
	d.names[name]++
	d.mu.Unlock()
	time.Sleep(5 * time.Millisecond)
	done, lost := d.lose(int(d.puts.Add(1)))
	if lost && !done {
		return errors.New("the line broke before")
	}
	if err := d.Mem.Put(ctx, name, p); err != nil {
		return err
	}
	if lost {
		return errors.New("the line broke after")
	}
	return nil
}

// Packs go out beside each other; one whose fate is unclear and that is not there
// goes under another name, and none is put twice under its own.
func TestUploads(t *testing.T) {
	for _, tt := range []struct {
		name     string
		packSize int
		lose     func(n int) (done, lost bool)
		most     int64
	}{
		{"all is well", 64 << 10, func(int) (bool, bool) { return false, false }, 4},
		{"answers are lost", 64 << 10, func(n int) (bool, bool) { return true, n%3 == 0 }, 4},
		{"requests are lost", 64 << 10, func(n int) (bool, bool) { return false, n%7 == 0 }, 4},
		{"packs so large that there is room for one", 64 << 20, func(int) (bool, bool) { return false, false }, 2}, // data and pages
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &distant{Mem: backend.NewMem(), lose: tt.lose, names: map[string]int{}}
			ix := newIndex()
			s := chunkstore.New(d, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), PackSize: tt.packSize, FrameSize: 8 << 10})
			var chunks [][]byte
			for i := range 300 {
				chunks = append(chunks, content(2, i, 8<<10))
			}
			store(t, s, pack.Data, chunks...)
			wantChunks(t, chunkstore.New(d, testKeys(t), ix.fresh(), chunkstore.Options{}), chunks...)
			for name, n := range d.names {
				if n > 1 {
					t.Errorf("%s was put %d times", name, n)
				}
			}
			if m := d.most.Load(); m > tt.most || tt.most == 4 && m < 2 {
				t.Errorf("up to %d packs at once, want %d at most", m, tt.most)
			}
		})
	}
}

// A place that is gone for good ends the session.
func TestUploadsFail(t *testing.T) {
	d := &distant{Mem: backend.NewMem(), lose: func(n int) (bool, bool) { return false, true }, names: map[string]int{}}
	s := chunkstore.New(d, testKeys(t), newIndex(), chunkstore.Options{Random: testRandom(1), PackSize: 64 << 10, FrameSize: 8 << 10})
	w := s.NewWriter([16]byte{1}, usable(false))
	p := content(3, 0, 100)
	st := w.Stream(pack.Data)
	if _, err := st.Put(s.Keys().Data.Sum(p), p); err != nil {
		t.Fatal(err)
	}
	st.Flush()
	if err := w.Close(); err == nil {
		t.Error("a session that stored nothing ended well")
	}
	if len(d.names) != 6 {
		t.Errorf("%d names were tried, want 6", len(d.names))
	}
}
