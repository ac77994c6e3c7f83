package snapshotter

import (
	"context"
	"fmt"
	"io"
	"iter"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// copyFile cuts a stored file anew, and makes its slot known, and those of others
// that hold the same.
func (w *worker) copyFile(ctx context.Context, j *job) {
	u := w.u
	switch err := w.recut(ctx, j); {
	case err == nil:
		u.from.memo.settle(j)
		j.d.done(j.s)
	case ctx.Err() != nil:
	case u.w.Err() != nil:
		u.cancel(u.w.Err())
	default:
		u.cancel(fmt.Errorf("%q: %w", "/"+j.path, err))
	}
}

// recut writes the recipe of a file for the destination. Holes, runs of zeros, and
// what is absent or lost stay what they are and where they are; what lies between
// is cut as if it were read from a live file.
func (w *worker) recut(ctx context.Context, j *job) error {
	r := newRecutter(ctx, w, j)
	defer r.close()
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !r.fill(1) {
			break
		}
		x := r.ext[0].Extent
		if x.Kind != tree.Data {
			w.u.p.Bytes.Add(uint64(x.Len))
			if err := r.rw.Add(tree.Extent{Len: x.Len, Kind: x.Kind, End: x.End}); err != nil {
				return err
			}
			r.drop(r.rw.Size())
			continue
		}
		if err := r.section(); err != nil {
			return err
		}
	}
	if r.err != nil {
		return r.err
	}
	size := j.copy.from.Size
	if err := r.rw.Finish(&j.s.e); err != nil {
		return err
	}
	if j.s.e.Size != size {
		return fmt.Errorf("its recipe describes %d bytes of %d: %w", j.s.e.Size, size, chunk.ErrCorrupt)
	}
	return nil
}

// isBytes tells what the splitter saw: chunks, and the runs of zeros at which it
// stopped. Where these begin and end does not depend on how the rest is cut.
func isBytes(k tree.ExtentKind) bool { return k == tree.Data || k == tree.Zero }

// spot is an extent of the source, and where an earlier state of the file had it;
// -1 if it had not.
type spot struct {
	tree.Extent
	old int64
}

// recutter cuts one file. It holds a window of the source's recipe, from the next
// byte to be cut on.
//
// It also has an earlier state of the file, and what that became in the
// destination. Where the source has the same chunks as it had, the bytes are the
// same; and the splitter, which begins anew behind every cut, cuts the same bytes
// behind a cut in the same way, if what follows up to a run of zeros is the same
// too. So what the earlier state was cut into is taken over without being read.
type recutter struct {
	ctx context.Context
	w   *worker
	rw  *tree.RecipeWriter

	next func() (tree.Extent, error, bool)
	ext  []spot
	end  bool
	err  error // of the source's recipe

	was   *recipe // of the earlier state, in the source
	delta int64   // where its extents stand now, less where they stood
	copy  *recipe // what it became
	stops []func()
}

// recipe is a recipe read in order, a few extents at a time.
type recipe struct {
	next  func() (tree.Extent, error, bool)
	queue []tree.Extent
}

// fill reads up to n extents ahead; damage reads as the end.
func (q *recipe) fill(n int) bool {
	for q.next != nil && len(q.queue) < n {
		x, err, ok := q.next()
		if !ok || err != nil {
			q.next = nil
			break
		}
		q.queue = append(q.queue, x)
	}
	return len(q.queue) >= n
}

func newRecutter(ctx context.Context, w *worker, j *job) *recutter {
	r := &recutter{ctx: ctx, w: w, rw: tree.NewRecipeWriter(w.u.putPage)}
	pull := func(get tree.Get, e *tree.Entry) func() (tree.Extent, error, bool) {
		next, stop := iter.Pull2(tree.Recipe(get, e))
		r.stops = append(r.stops, stop)
		return next
	}
	r.next = pull(w.u.from.page, &j.copy.from)
	if old := j.copy.old; old != nil && old.Kind == tree.File && !old.Recipe.IsZero() {
		r.was = &recipe{next: pull(w.u.from.page, old)}
		r.copy = &recipe{next: pull(w.u.getPage(ctx), j.copy.copy)}
	}
	return r
}

func (r *recutter) close() {
	for _, stop := range r.stops {
		stop()
	}
}

// The window is filled by so many extents at once, and of these what will be read
// is asked for in advance, so many bytes at most.
const (
	aheadExtents = 32
	aheadBytes   = 4 << 20
)

// fill makes the window at least n extents long, and reports whether it could.
func (r *recutter) fill(n int) bool {
	if len(r.ext) >= n || r.end {
		return len(r.ext) >= n
	}
	var ids []chunk.ID
	for ahead := int64(0); !r.end && len(r.ext) < n+aheadExtents; {
		x, err, ok := r.next()
		if !ok || err != nil {
			r.end, r.err = true, err
			break
		}
		at := r.find(x)
		r.ext = append(r.ext, spot{x, at})
		if ahead += x.Len; at < 0 && x.Kind == tree.Data && ahead <= aheadBytes {
			ids = append(ids, x.ID)
		}
	}
	r.w.u.from.src.Store().Prefetch(ids)
	return len(r.ext) >= n
}

// recutWindow is how many extents of the earlier state, behind and ahead of where
// one is expected, are searched for it: so much may be inserted or deleted in one
// place without all behind it being read.
const recutWindow = 256

// find returns where the earlier state had an extent. Both are gone through in
// order.
func (r *recutter) find(x tree.Extent) int64 {
	if r.was == nil || !isBytes(x.Kind) {
		return -1
	}
	q := r.was
	behind := 0
	for q.fill(behind+1) && q.queue[behind].Off+r.delta < x.Off {
		if behind++; behind > recutWindow {
			q.queue = q.queue[1:]
			behind--
		}
	}
	q.fill(behind + recutWindow)
	for i, y := range q.queue {
		// What ended for another reason was perhaps followed by an end of which the
		// splitter knew. A run of zeros tells nothing of where it was.
		if y.Kind == x.Kind && y.End == x.End && y.Len == x.Len && y.ID == x.ID && (x.Kind == tree.Data || y.Off+r.delta == x.Off) {
			r.delta = x.Off - y.Off
			q.queue = q.queue[i+1:]
			return y.Off
		}
	}
	return -1
}

// drop takes out of the window what lies before an offset.
func (r *recutter) drop(off int64) {
	i := 0
	for i < len(r.ext) && r.ext[i].Off+r.ext[i].Len <= off {
		i++
	}
	r.ext = r.ext[i:]
}

// section cuts what lies before the next extent that is no chunk, or the next cut
// that the file's own source asked for.
func (r *recutter) section() error {
	for {
		if err := r.takeOver(); err != nil {
			return err
		}
		s := &sectionReader{r: r, at: r.rw.Size()}
		r.w.cutter.Reset(s)
		for known := false; !known; {
			done, err := r.piece(s)
			if done || err != nil {
				return err
			}
			_, known = r.known()
		}
	}
}

// piece cuts one piece; true at the end of the section.
func (r *recutter) piece(s *sectionReader) (done bool, err error) {
	if r.ctx.Err() != nil {
		return false, r.ctx.Err()
	}
	w := r.w
	p, err := w.cutter.Next()
	if err == io.EOF {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	end := tree.End(p.End)
	if p.End == chunk.EndFile {
		end = s.last
	}
	if p.Zero { // who wrote the source did not look for such
		w.u.p.Bytes.Add(uint64(p.Len))
		err = r.rw.Add(tree.Extent{Len: p.Len, Kind: tree.Zero, End: end})
	} else {
		err = w.put(p.Data, end, r.rw)
	}
	r.drop(r.rw.Size())
	return false, err
}

// takeOver takes over what the earlier state was cut into, as far as it is known.
func (r *recutter) takeOver() error {
	for {
		x, ok := r.known()
		if !ok {
			return nil
		}
		r.copy.queue = r.copy.queue[1:]
		r.w.u.p.Bytes.Add(uint64(x.Len))
		if err := r.rw.Add(x); err != nil {
			return err
		}
		r.drop(r.rw.Size())
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
	}
}

// known returns the extent that the next bytes will be cut into, if that is known.
func (r *recutter) known() (x tree.Extent, ok bool) {
	if r.copy == nil || !r.fill(1) || r.ext[0].old < 0 {
		return x, false
	}
	at := r.rw.Size()
	was := r.ext[0].old + at - r.ext[0].Off
	for r.copy.fill(1) && r.copy.queue[0].Off < was {
		r.copy.queue = r.copy.queue[1:]
	}
	if !r.copy.fill(1) {
		return x, false
	}
	x = r.copy.queue[0]
	if x.Off != was || !isBytes(x.Kind) {
		return x, false
	}
	return x, r.reaches(at + x.Len + chunk.ZeroRun)
}

// reaches reports whether the bytes up to an offset are those of the earlier
// state, one behind the other.
func (r *recutter) reaches(off int64) bool {
	for i := 0; ; i++ {
		if !r.fill(i + 1) {
			return false
		}
		x := &r.ext[i]
		if x.old < 0 || x.old-x.Off != r.ext[0].old-r.ext[0].Off {
			return false
		}
		if x.Off+x.Len >= off {
			return true
		}
	}
}

// sectionReader reads the bytes of a section, from an offset in the window on.
type sectionReader struct {
	r    *recutter
	at   int64
	cur  []byte   // of a chunk
	end  tree.End // why the chunk ended
	over bool
	last tree.End // why the section ended
}

func (s *sectionReader) Read(p []byte) (int, error) {
	if len(s.cur) == 0 {
		if err := s.load(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.cur)
	s.cur = s.cur[n:]
	s.at += int64(n)
	return n, nil
}

// load gets the bytes of the next extent. The window begins at what was not cut
// yet, which is not behind what is read.
func (s *sectionReader) load() error {
	if s.over {
		return io.EOF
	}
	r, i := s.r, 0
	for r.fill(i+1) && r.ext[i].Off+r.ext[i].Len <= s.at {
		i++
	}
	if !r.fill(i + 1) {
		if r.err != nil {
			return r.err
		}
		s.over, s.last = true, tree.EndFile
		return io.EOF
	}
	x := &r.ext[i]
	if x.Kind != tree.Data || s.end.BySource() {
		s.over, s.last = true, tree.EndSource
		if s.end.BySource() {
			s.last = s.end
		} else if x.Kind == tree.Zero {
			s.last = tree.EndZero
		}
		return io.EOF
	}
	s.end = x.End
	b, err := r.w.u.from.src.Store().Data(r.ctx, x.ID)
	if err != nil {
		return err
	}
	if int64(len(b)) != x.Len {
		return fmt.Errorf("chunk %s has %d bytes, the recipe says %d: %w", x.ID, len(b), x.Len, chunk.ErrCorrupt)
	}
	s.cur = b[s.at-x.Off:]
	r.w.u.p.ReadBytes.Add(uint64(len(s.cur)))
	return nil
}
