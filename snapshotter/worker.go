package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// maxFile is the largest file that is stored, in bytes: an exbibyte. Sparse
// files can claim more.
const maxFile = 1 << 60

// smallFile is up to which size a file that takes as much as it holds is not
// asked for holes.
const smallFile = 16 << 10

// rereads is how often a file that changed while it was read is read again.
const rereads = 2

// Streamer is a file Node of unknown size that can be read once: standard
// input.
type Streamer interface {
	Stream() io.Reader
}

// job is a file to be read.
type job struct {
	d    *dirJob
	s    *slot
	n    tree.Node
	path string
	prev *prevItem
	copy *copyJob // of a copy, which has no node
	bare bool     // what it contains is left out
}

// worker reads files, one at a time.
type worker struct {
	u      *run
	cutter *chunk.Cutter
	st     *chunkstore.Stream
	hash   *chunk.Hasher
	min    int
	small  []byte
	stop   tree.End // why the section ends that is being cut, unless the file does
}

func (u *run) newWorker() (*worker, error) {
	cfg := u.r.Config()
	c, err := chunk.NewCutter(cfg.Params())
	if err != nil {
		return nil, err
	}
	return &worker{u: u, cutter: c, st: u.w.Stream(pack.Data), hash: u.r.SecretKeys().Data, min: cfg.Splitter.Min}, nil
}

func (w *worker) loop(ctx context.Context) {
	for batch := range w.u.jobs {
		for _, j := range batch {
			if ctx.Err() != nil {
				break
			}
			w.do(ctx, j)
		}
	}
	w.st.Flush()
}

// do reads a file and makes its slot known.
func (w *worker) do(ctx context.Context, j *job) {
	u := w.u
	if j.copy != nil {
		w.copyFile(ctx, j)
		return
	}
	if j.s.e.Kind != tree.File {
		u.special(ctx, j) // a later name that is another node by now
		return
	}
	err := w.file(ctx, j)
	switch {
	case err == nil:
		u.p.Files.Add(1)
		switch {
		case j.prev == nil || j.prev.e.Kind != tree.File:
			u.p.New.Add(1)
		case sameContents(&j.s.e, j.prev.e):
			u.p.Unchanged.Add(1) // though it had to be read to know
		default:
			u.p.Modified.Add(1)
		}
	case ctx.Err() != nil:
		return
	case u.w.Err() != nil:
		u.cancel(u.w.Err())
		return
	case errors.Is(err, fs.ErrNotExist):
		j.s.drop = true // gone since it was listed
	case isStream(j.n):
		u.cancel(fmt.Errorf("%s: %w", j.path, err)) // half a stream is no snapshot
		return
	default:
		j.s.drop = true
		u.problem(j.path, err)
	}
	u.finish(ctx, j, w.do)
}

func isStream(n tree.Node) bool {
	_, ok := n.(Streamer)
	return ok
}

func sameContents(a, b *tree.Entry) bool {
	return a.Size == b.Size && a.Recipe == b.Recipe && slices.Equal(a.Extents, b.Extents)
}

func (w *worker) file(ctx context.Context, j *job) error {
	if s, ok := j.n.(Streamer); ok {
		return w.stream(ctx, j, s.Stream())
	}
	o, ok := j.n.(tree.Opener)
	if !ok {
		return w.node(ctx, j)
	}
	f, err := o.Open(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	a, err := f.Stat()
	if err != nil {
		return err
	}
	if a.Size > maxFile {
		return fmt.Errorf("%d bytes are more than a snapshot can hold: %w", a.Size, syscall.EFBIG)
	}
	for try := 0; ; try++ {
		w.begin(j, a)
		rw := tree.NewRecipeWriter(w.u.putPage)
		if err := w.extents(ctx, j, f, a, rw); err != nil {
			return err
		}
		b, err := f.Stat()
		if err != nil {
			return err
		}
		if rw.Size() == a.Size && a.Size == b.Size && a.Mtime == b.Mtime && (a.Ctime == b.Ctime || a.Nlink != b.Nlink) {
			if err := rw.Finish(&j.s.e); err != nil {
				return err
			}
			break
		}
		if try == rereads {
			j.s.e.Changed = true
			w.u.countChanged()
			if err := rw.Finish(&j.s.e); err != nil {
				return err
			}
			break
		}
		a = b
	}
	return w.xattrs(ctx, j)
}

// begin sets the attributes as they were before reading: if the file changes
// later, the next snapshot sees other ones.
func (w *worker) begin(j *job, a *tree.Attr) {
	name := j.s.e.Name
	setAttr(j.s, a)
	j.s.e.Name, j.s.w.Name = name, name
}

func (w *worker) xattrs(ctx context.Context, j *job) error {
	xs, err := j.n.Xattrs(ctx)
	if err != nil {
		return err
	}
	return j.s.e.SetXattrs(xs, w.u.putPage)
}

// extents cuts an open file into rw, holes and what is left out apart. Where one
// range of data follows another, the source wants a cut.
func (w *worker) extents(ctx context.Context, j *job, f tree.OpenFile, a *tree.Attr, rw *tree.RecipeWriter) error {
	if a.Size == 0 {
		return nil
	}
	g := w.newGuide(ctx, j.prev)
	defer g.close()
	if a.Allocated >= a.Size && a.Size <= smallFile {
		return w.section(ctx, f, 0, a.Size, a.Size, rw, g)
	}
	for x, err := range f.Extents(0) {
		if err != nil {
			return err
		}
		if x.Off >= a.Size {
			break
		}
		x.Len = min(x.Len, a.Size-x.Off)
		if x.Kind == tree.Hole || x.Kind == tree.Absent {
			end := tree.EndSource
			if x.Off+x.Len == a.Size {
				end = tree.EndFile
			}
			w.u.p.Bytes.Add(uint64(x.Len))
			if err := rw.Add(tree.Extent{Len: x.Len, Kind: x.Kind, End: end}); err != nil {
				return err
			}
			continue
		}
		if w.stop = tree.EndSource; x.End == tree.EndRecord {
			w.stop = tree.EndRecord
		}
		if err := w.section(ctx, f, x.Off, x.Len, a.Size, rw, g); err != nil {
			return err
		}
		if rw.Size() < x.Off+x.Len {
			return nil // the file became shorter: it will be read again
		}
	}
	return nil
}

// section cuts one range of a file.
func (w *worker) section(ctx context.Context, f io.ReaderAt, off, n, size int64, rw *tree.RecipeWriter, g *guide) error {
	if n < int64(w.min) {
		return w.smallSection(f, off, n, size, rw)
	}
	w.cutter.Reset(io.NewSectionReader(f, off, n))
	return w.cut(ctx, off+n, size, rw, g)
}

// smallSection is section where the splitter cannot cut.
func (w *worker) smallSection(f io.ReaderAt, off, n, size int64, rw *tree.RecipeWriter) error {
	if cap(w.small) < int(n) {
		w.small = make([]byte, w.min)
	}
	p := w.small[:n]
	m, err := f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return err
	}
	p = p[:m]
	w.u.p.ReadBytes.Add(uint64(m))
	if m < chunk.ZeroRun || !bytes.Contains(p, zeroBlock) {
		if m == 0 {
			return nil
		}
		return w.put(p, w.endOf(chunk.EndFile, off+int64(m), size), rw)
	}
	w.u.p.ReadBytes.Add(^uint64(m - 1)) // cut counts them
	w.cutter.Reset(bytes.NewReader(p))
	return w.cut(context.Background(), off+n, size, rw, nil)
}

// zeroBlock is in every run of zeros that is no chunk.
var zeroBlock = make([]byte, chunk.ZeroRun)

// endOf corrects the end of a section's last piece: unless the file ends there
// too, it is the source that said so.
func (w *worker) endOf(end chunk.End, at, size int64) tree.End {
	if end == chunk.EndFile && at < size {
		return w.stop
	}
	return tree.End(end)
}

// cut takes pieces until the cutter's stream ends, at offset stop of a file of
// that size.
func (w *worker) cut(ctx context.Context, stop, size int64, rw *tree.RecipeWriter, g *guide) error {
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		at := rw.Size()
		p, id, guessed, err := g.guess(w, at)
		if err != nil {
			return err
		}
		if !guessed {
			if p, err = w.cutter.Next(); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
		w.u.p.ReadBytes.Add(uint64(p.Len))
		end := w.endOf(p.End, at+p.Len, size)
		if p.Zero {
			w.u.p.Bytes.Add(uint64(p.Len))
			if err := rw.Add(tree.Extent{Len: p.Len, Kind: tree.Zero, End: end}); err != nil {
				return err
			}
			continue
		}
		if !guessed {
			id = w.hash.Sum(p.Data)
			g.cut(at, p.Len, id)
		}
		if err := w.putID(id, p.Data, end, rw); err != nil {
			return err
		}
	}
}

func (w *worker) put(p []byte, end tree.End, rw *tree.RecipeWriter) error {
	return w.putID(w.hash.Sum(p), p, end, rw)
}

func (w *worker) putID(id chunk.ID, p []byte, end tree.End, rw *tree.RecipeWriter) error {
	stored, err := w.st.Put(id, p)
	if err != nil {
		return err
	}
	if stored {
		w.u.p.NewBytes.Add(uint64(len(p)))
	} else {
		w.u.p.Known.Add(uint64(len(p)))
	}
	w.u.p.Bytes.Add(uint64(len(p)))
	return rw.Add(tree.Extent{Len: int64(len(p)), Kind: tree.Data, End: end, ID: id})
}

// stream reads a file of unknown size.
func (w *worker) stream(ctx context.Context, j *job, r io.Reader) error {
	rw := tree.NewRecipeWriter(w.u.putPage)
	g := w.newGuide(ctx, j.prev)
	defer g.close()
	pr, pw := io.Pipe()
	go func() {
		_, err := io.Copy(pw, r)
		pw.CloseWithError(err)
	}()
	// A Read of the stream cannot be interrupted, waiting for it can.
	defer context.AfterFunc(ctx, func() { pr.CloseWithError(ctx.Err()) })()
	defer pr.Close()
	w.cutter.Reset(pr)
	if err := w.cut(ctx, 0, 0, rw, g); err != nil {
		return err
	}
	return rw.Finish(&j.s.e)
}

// node reads a file that cannot be opened, only read: of an io/fs, or of
// another snapshot.
func (w *worker) node(ctx context.Context, j *job) error {
	a := j.n.Attr()
	rw := tree.NewRecipeWriter(w.u.putPage)
	r := io.NewSectionReader(readerAt{ctx, j.n}, 0, a.Size)
	w.cutter.Reset(r)
	if err := w.cut(ctx, a.Size, a.Size, rw, nil); err != nil {
		return err
	}
	if err := rw.Finish(&j.s.e); err != nil {
		return err
	}
	return w.xattrs(ctx, j)
}

type readerAt struct {
	ctx context.Context
	n   tree.Node
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.n.ReadAt(r.ctx, p, off) }
