package chunkstore

import (
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// maxPackChunks bounds a pack's trailer to about 5 MB, whatever small chunks
// the data has.
const maxPackChunks = 128 << 10

// maxFrameChunks bounds the lengths in front of a frame.
const maxFrameChunks = 4096

// frameRoom is room for those lengths: three bytes each, and the count.
const frameRoom = 3*maxFrameChunks + 16

// Writer stores new chunks for one session. It is safe for concurrent use; the
// Streams it gives are for one goroutine each.
type Writer struct {
	s       *Store
	session [16]byte
	usable  func(pack.Name) bool

	pending [64]pendingShard
	own     sync.Map // pack.Name of this session

	leanMu sync.Mutex
	leaned map[pack.Name]struct{} // packs of others in which chunks were found

	jobs    chan job
	sealers sync.WaitGroup
	free    chan []byte // frame buffers
	packers [3]packer   // by pack.Kind
	uploads chan *pack.Builder
	closing sync.Once
	room    chan []byte // pack buffers of data packs

	uploaders sync.WaitGroup
	fresh     unpublished

	errMu sync.Mutex
	err   error // the first; the session is lost then

	stats writerStats
}

type pendingShard struct {
	mu  sync.Mutex
	ids map[chunk.ID]struct{}
}

type packer struct {
	mu sync.Mutex
	b  *pack.Builder
}

type job struct {
	kind   pack.Kind
	buf    []byte // frameRoom bytes of room, then the chunks
	chunks []pack.Chunk
}

type writerStats struct {
	newChunks, knownChunks atomic.Uint64
	newBytes, knownBytes   atomic.Uint64
	stored, packs          atomic.Uint64
}

// WriterStats counts what a Writer did.
type WriterStats struct {
	NewChunks, KnownChunks uint64
	NewBytes, KnownBytes   uint64 // plain
	Stored                 uint64 // bytes of the packs stored so far
	Packs                  uint64 // that are stored
}

// NewWriter begins a session. usable tells whether a pack may be leaned on; it
// must be safe for concurrent use. Close must be called.
func (s *Store) NewWriter(session [16]byte, usable func(pack.Name) bool) *Writer {
	n, up := runtime.GOMAXPROCS(0), s.uploaders()
	w := &Writer{s: s, session: session, usable: usable, leaned: map[pack.Name]struct{}{}, jobs: make(chan job, n), free: make(chan []byte, 4*n+8),
		uploads: make(chan *pack.Builder), room: make(chan []byte, max(2, up))}
	for i := range w.pending {
		w.pending[i].ids = map[chunk.ID]struct{}{}
	}
	for range n {
		w.sealers.Add(1)
		go w.sealer()
	}
	w.uploaders.Add(up)
	for range up {
		go w.uploader()
	}
	return w
}

// Stats returns the counts so far.
func (w *Writer) Stats() WriterStats {
	return WriterStats{w.stats.newChunks.Load(), w.stats.knownChunks.Load(), w.stats.newBytes.Load(), w.stats.knownBytes.Load(), w.stats.stored.Load(), w.stats.packs.Load()}
}

func (w *Writer) fail(err error) {
	w.errMu.Lock()
	if w.err == nil {
		w.err = err
	}
	w.errMu.Unlock()
}

// Err returns what has ended the session, if anything has.
func (w *Writer) Err() error {
	w.errMu.Lock()
	defer w.errMu.Unlock()
	return w.err
}

// Known reports whether the chunk need not be put.
func (w *Writer) Known(id chunk.ID) (bool, error) {
	sh := &w.pending[id[0]&63]
	sh.mu.Lock()
	_, ok := sh.ids[id]
	sh.mu.Unlock()
	if ok {
		return true, nil
	}
	var room [4]pack.Location
	locs, err := w.s.ix.Lookup(id, room[:0])
	for _, l := range locs {
		if w.usable(l.Pack) {
			w.lean(l.Pack)
			return true, err
		}
		if _, ok := w.own.Load(l.Pack); ok {
			return true, err
		}
	}
	return false, err
}

// claim makes the caller the one who stores the chunk; false if it is known.
func (w *Writer) claim(id chunk.ID) (bool, error) {
	for {
		packs := w.stats.packs.Load()
		known, err := w.Known(id)
		if known || err != nil {
			return false, err
		}
		if w.mark(id, packs) {
			return true, nil
		}
	}
}

// mark makes a chunk pending, unless it is, or more packs were stored since:
// then it may just have moved from pending to the index.
func (w *Writer) mark(id chunk.ID, packs uint64) bool {
	sh := &w.pending[id[0]&63]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if _, ok := sh.ids[id]; ok || w.stats.packs.Load() != packs {
		return false
	}
	sh.ids[id] = struct{}{}
	return true
}

// Stream puts chunks that belong together. It is for one goroutine at a time.
type Stream struct {
	w      *Writer
	kind   pack.Kind
	size   int
	buf    []byte
	chunks []pack.Chunk
}

// Stream returns a new Stream for chunks of that kind.
func (w *Writer) Stream(kind pack.Kind) *Stream {
	return &Stream{w: w, kind: kind, size: w.s.FrameSize(kind)}
}

// Put stores a chunk unless it is known, and reports which. It keeps no
// reference to p. An error ends the session: whether of this chunk or of an
// earlier one.
func (st *Stream) Put(id chunk.ID, p []byte) (stored bool, err error) {
	if err := st.w.Err(); err != nil {
		return false, err
	}
	fresh, err := st.w.claim(id)
	if err != nil {
		return false, err
	}
	if !fresh {
		st.w.stats.knownChunks.Add(1)
		st.w.stats.knownBytes.Add(uint64(len(p)))
		return false, nil
	}
	st.w.stats.newChunks.Add(1)
	st.w.stats.newBytes.Add(uint64(len(p)))
	if len(st.chunks) > 0 && (len(st.buf)-frameRoom+len(p) > st.size || len(st.chunks) == maxFrameChunks) {
		st.Flush()
	}
	if st.buf == nil {
		st.buf = st.w.frameBuffer(frameRoom + max(st.size, len(p)))[:frameRoom]
	}
	st.buf = append(st.buf, p...)
	st.chunks = append(st.chunks, pack.Chunk{ID: id, Len: uint32(len(p))})
	return true, nil
}

func (w *Writer) frameBuffer(n int) []byte {
	select {
	case b := <-w.free:
		if cap(b) >= n {
			return b
		}
	default:
	}
	return make([]byte, 0, n)
}

func (w *Writer) releaseBuffer(b []byte) {
	select {
	case w.free <- b[:0]:
	default:
	}
}

// Flush hands the open frame on, however full it is.
func (st *Stream) Flush() {
	if len(st.chunks) == 0 {
		return
	}
	st.w.jobs <- job{kind: st.kind, buf: st.buf, chunks: st.chunks}
	st.buf, st.chunks = nil, nil
}

// sealer compresses frames and seals them into packs.
func (w *Writer) sealer() {
	defer w.sealers.Done()
	var packed []byte
	for j := range w.jobs {
		if w.Err() == nil {
			var head [frameRoom]byte
			h := binary.AppendUvarint(head[:0], uint64(len(j.chunks)))
			for _, c := range j.chunks {
				h = binary.AppendUvarint(h, uint64(c.Len))
			}
			plain := j.buf[frameRoom-len(h):]
			copy(plain, h)
			packed = seal.Pack(packed, plain, w.s.opt.Level)
			if err := w.addFrame(j.kind, packed, len(plain), j.chunks); err != nil {
				w.fail(err)
			}
		}
		w.releaseBuffer(j.buf)
	}
}

func (w *Writer) addFrame(kind pack.Kind, packed []byte, plain int, chunks []pack.Chunk) error {
	limit := w.s.PackSize(kind)
	pk := &w.packers[kind]
	pk.mu.Lock()
	defer pk.mu.Unlock()
	if pk.b == nil {
		b, err := pack.NewBuilder(w.s.k, kind, w.session, w.s.opt.Random, w.packBuffer(limit))
		if err != nil {
			return err
		}
		pk.b = b
		w.own.Store(b.Name(), struct{}{})
	}
	pk.b.Add(packed, plain, chunks)
	if pk.b.Size() >= limit || pk.b.Chunks() >= maxPackChunks {
		w.uploads <- pk.b
		pk.b = nil
	}
	return nil
}

func (w *Writer) packBuffer(limit int) []byte {
	if limit == w.s.opt.PackSize {
		select {
		case b := <-w.room:
			return b
		default:
		}
	}
	return make([]byte, 0, limit+limit/8)
}

// Close stores what is open and publishes it. All Streams must have been
// flushed and be unused. After Close returned nil everything that was put is
// durable and listed; after an error the session is lost, and what it stored
// is found by the next. Closing again only returns the same.
func (w *Writer) Close() error {
	w.closing.Do(w.shut)
	return w.Err()
}

func (w *Writer) shut() {
	close(w.jobs)
	w.sealers.Wait()
	for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
		if b := w.packers[kind].b; b != nil {
			w.uploads <- b
		}
	}
	close(w.uploads)
	w.uploaders.Wait()
	w.publish(w.fresh.packs) // after an error too: what is stored serves others
}
