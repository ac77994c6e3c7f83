package chunkstore_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/diskcache"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// across is a backend across a network, with a record of its calls.
type across struct{ *backendtest.Recorder }

func (across) Transfers() int { return 4 }

// farStage is stored chunks, and a way to open them anew across a network.
type farStage struct {
	t      testing.TB
	mem    backend.Backend
	ix     *testIndex
	ids    []chunk.ID
	chunks [][]byte
}

const farChunk = 32 << 10

// newFarStage stores n chunks of 32 KiB, 4 of them in a frame.
func newFarStage(t testing.TB, kind pack.Kind, n int) *farStage {
	t.Helper()
	st := &farStage{t: t, mem: backend.NewMem(), ix: newIndex()}
	s := chunkstore.New(st.mem, testKeys(t), st.ix, chunkstore.Options{FrameSize: 4 * farChunk, Random: testRandom(3)})
	for i := range n {
		p := content(5, i, farChunk)
		st.chunks = append(st.chunks, p)
		st.ids = append(st.ids, hasher(s, kind).Sum(p))
	}
	store(t, s, kind, st.chunks...)
	return st
}

func (st *farStage) open(opt chunkstore.Options) (*chunkstore.Store, across) {
	b := across{backendtest.NewRecorder(st.mem)}
	s := chunkstore.New(b, testKeys(st.t), st.ix, opt)
	st.t.Cleanup(s.Close)
	return s, b
}

func (st *farStage) read(s *chunkstore.Store, i int) {
	st.t.Helper()
	p, err := s.Data(context.Background(), st.ids[i])
	if err != nil || !bytes.Equal(p, st.chunks[i]) {
		st.t.Errorf("chunk %d comes back as %d bytes, %v", i, len(p), err)
	}
}

func (st *farStage) frame(i int) pack.Location {
	locs, _ := st.ix.Lookup(st.ids[i], nil)
	return locs[0]
}

// wantGets fails unless there were at most so many requests, of at most so many
// bytes.
func wantGets(t testing.TB, what string, b across, most int, mostBytes int64) {
	t.Helper()
	got, _ := b.Bytes()
	if n := b.Count("get"); n > most || got > mostBytes {
		t.Errorf("%s: %d requests of %d bytes, want at most %d of %d", what, n, got, most, mostBytes)
	}
	b.Reset()
}

// Chunks here and there cost one request for one frame each.
func TestFarRandomReads(t *testing.T) {
	st := newFarStage(t, pack.Data, 1500)
	s, b := st.open(chunkstore.Options{})
	want := int64(0)
	for n, i := range []int{1000, 200, 600, 40, 1300} { // megabytes apart
		st.read(s, i)
		st.read(s, i)
		want += int64(st.frame(i).Stored)
		if got, _ := b.Bytes(); b.Count("get") != n+1 || got != want {
			t.Fatalf("after %d frames: %d requests of %d bytes, want one each, %d bytes", n+1, b.Count("get"), got, want)
		}
	}
}

// Who reads on is fetched ahead of in growing pieces, and nothing twice.
func TestFarSequential(t *testing.T) {
	st := newFarStage(t, pack.Data, 1000) // 32 MB
	s, b := st.open(chunkstore.Options{CacheBytes: 1 << 20})
	for i := range st.ids {
		st.read(s, i)
	}
	wantGets(t, "1000 chunks in order", b, 20, 1000*farChunk*11/10)
}

// What is announced comes with few requests, whatever the order.
func TestFarAnnounced(t *testing.T) {
	st := newFarStage(t, pack.Data, 1000)
	s, b := st.open(chunkstore.Options{})
	if s.Ahead() <= 0 {
		t.Fatal("nothing is worth announcing")
	}
	var some []chunk.ID
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(400) {
		some = append(some, st.ids[i])
	}
	s.Prefetch(some)
	s.Prefetch(some)
	for i := range 400 {
		st.read(s, i)
	}
	// The first go out before anybody knows of their neighbours.
	wantGets(t, "400 announced chunks", b, 12, 400*farChunk*11/10)
	// Far apart: nothing between is fetched.
	s, b = st.open(chunkstore.Options{})
	s.Prefetch([]chunk.ID{st.ids[0], st.ids[300], st.ids[900]})
	for _, i := range []int{900, 0, 300} {
		st.read(s, i)
	}
	wantGets(t, "3 chunks far apart", b, 3, 3*5*farChunk)
}

// A pack of pages comes with a few requests.
func TestFarPages(t *testing.T) {
	st := newFarStage(t, pack.Meta, 220) // 7 MB
	s, b := st.open(chunkstore.Options{CacheBytes: 1 << 20})
	last := len(st.ids) - 1 // as a tree's root
	for i := range st.ids {
		i := (last + i) % len(st.ids)
		p, err := s.Page(t.Context(), st.ids[i])
		if err != nil || !bytes.Equal(p, st.chunks[i]) {
			t.Fatalf("page %d: %v", i, err)
		}
	}
	wantGets(t, "all pages", b, 5, 9<<20)
}

// Many readers, who are told to ask for what there is room for, fetch nothing twice:
// what is still wanted stays longer than what was.
func TestFarManyReaders(t *testing.T) {
	const readers, each, window = 16, 4 << 20 / farChunk, 1 << 20 / farChunk
	st := newFarStage(t, pack.Data, readers*each)
	b := far{across{backendtest.NewRecorder(st.mem)}}
	s := chunkstore.New(b, testKeys(t), st.ix, chunkstore.Options{AheadBytes: 3 * readers * window * farChunk, CacheBytes: 1 << 20})
	t.Cleanup(s.Close)
	var wg sync.WaitGroup
	for r := range readers {
		wg.Go(func() {
			ids, told := st.ids[r*each:(r+1)*each], 0
			for i := range ids {
				if to := min(each, i/8*8+2*window); told < to {
					s.Prefetch(ids[told:to])
					told = to
				}
				st.read(s, r*each+i)
			}
		})
	}
	wg.Wait()
	if got, _ := b.Bytes(); got > readers*each*farChunk*11/10 {
		t.Errorf("%d bytes were fetched of %d", got, readers*each*farChunk)
	}
}

// far is a backend of which each request takes a while.
type far struct{ across }

func (f far) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	time.Sleep(10 * time.Millisecond)
	return f.across.Get(ctx, name, off, n)
}

// What is held stays within the limit, whoever reads how.
func TestFarBounds(t *testing.T) {
	st := newFarStage(t, pack.Data, 800)
	const limit = 2 << 20
	s, _ := st.open(chunkstore.Options{AheadBytes: limit, CacheBytes: 256 << 10})
	stop := make(chan struct{})
	most := int64(0)
	var watch, readers sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				most = max(most, s.Held())
				time.Sleep(100 * time.Microsecond)
			}
		}
	})
	const n = 6
	for w := range n {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range 200 {
				switch w % 3 {
				case 0:
					st.read(s, (i+w*50)%len(st.ids))
				case 1:
					st.read(s, r.IntN(len(st.ids)))
				case 2:
					at := r.IntN(len(st.ids) - 20)
					s.Prefetch(st.ids[at : at+20])
					st.read(s, at+r.IntN(20))
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	watch.Wait()
	// Beside the limit each reader may wait for one frame.
	if room := int64(limit + n*5*farChunk); most > room {
		t.Errorf("up to %d bytes were held, want %d at most", most, room)
	}
	if most < limit/4 {
		t.Errorf("only up to %d bytes were held: nothing was fetched ahead", most)
	}
}

// A listing that is wrong about a pack's size, and neighbours that cannot be read,
// keep nobody from a frame that can.
func TestFarWrongSize(t *testing.T) {
	st := newFarStage(t, pack.Data, 100)
	for name, info := range st.ix.packs {
		info.Size *= 3
		st.ix.packs[name] = info
	}
	s, _ := st.open(chunkstore.Options{})
	for i := range st.ids {
		st.read(s, i)
	}
}

// stuck is a backend whose Gets wait until the context ends.
type stuck struct{ across }

func (s stuck) Get(ctx context.Context, _ string, _, _ int64) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Who gives up does not wait for the network; Close ends what nobody waits for.
func TestFarCancelled(t *testing.T) {
	st := newFarStage(t, pack.Data, 10)
	s := chunkstore.New(stuck{across{backendtest.NewRecorder(st.mem)}}, testKeys(t), st.ix, chunkstore.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if _, err := s.Data(ctx, st.ids[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	s.Close()
	if _, err := s.Data(t.Context(), st.ids[0]); err == nil {
		t.Error("a closed store reads")
	}
}

// The second process reads from the disk; what has rotted there is fetched again.
func TestFarDisk(t *testing.T) {
	st := newFarStage(t, pack.Data, 40)
	dir := t.TempDir()
	open := func(pages bool) (*chunkstore.Store, across) {
		return st.open(chunkstore.Options{Disk: diskcache.Open(dir, 64<<20), DiskPages: pages})
	}
	all := func(s *chunkstore.Store) {
		for i := range st.ids {
			st.read(s, i)
		}
		s.Close()
	}
	s, _ := open(true)
	all(s)
	if n, err := diskcache.Usage(dir); err != nil || n != 0 {
		t.Fatalf("contents of files were kept: %d bytes, %v", n, err)
	}
	s, _ = open(false)
	all(s)
	s, b := open(false)
	all(s)
	wantGets(t, "from the disk", b, 0, 0)
	files, err := filepath.Glob(filepath.Join(dir, "v1-??", "*"))
	if err != nil || len(files) != 10 {
		t.Fatalf("%d frames on the disk, want 10; %v", len(files), err)
	}
	for i, name := range files {
		p, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(p, st.chunks[0][:64]) {
			t.Errorf("%s holds plain bytes", name)
		}
		switch i % 3 {
		case 0:
			p[len(p)/2] ^= 1
		case 1:
			p = p[:len(p)-1]
		case 2:
			clear(p)
		}
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, b = open(false)
	all(s)
	if b.Count("get") == 0 {
		t.Error("no request, although all on the disk is damaged")
	}
	s, b = open(false)
	all(s)
	wantGets(t, "after damage was mended", b, 0, 0)
}

// flipping damages the first answers on their way.
type flipping struct {
	backend.Backend
	mu   sync.Mutex
	left int
}

func (*flipping) Transfers() int { return 4 }

func (f *flipping) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	p, err := f.Backend.Get(ctx, name, off, n)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left--; f.left >= 0 && err == nil {
		for i := range p {
			p[i] ^= 1
		}
	}
	return p, err
}

// What is damaged on its way is fetched again, and not kept for all who come later.
func TestFarDamagedOnTheWay(t *testing.T) {
	for _, announced := range []bool{false, true} {
		st := newFarStage(t, pack.Data, 100)
		b := &flipping{Backend: st.mem, left: 1}
		s := chunkstore.New(b, testKeys(t), st.ix, chunkstore.Options{CacheBytes: 1})
		t.Cleanup(s.Close)
		if announced {
			s.Prefetch(st.ids)
		}
		for i := range st.ids {
			st.read(s, i)
		}
	}
}
