package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// Item is one thing to restore. All items of a Run come from one snapshot, or
// one live tree: hard links are recognised across them.
type Item struct {
	// Path is where the node goes, relative to the target, slash-separated,
	// any bytes. "" is the target itself and wants a directory, whose contents
	// go there. Missing parents are created with mode 0755 and the umask.
	Path string
	Node tree.Node

	// Bare leaves the attributes of the directory that Path names as they
	// are: for a root that stands for no real directory.
	Bare bool
}

// Policy says when something that exists is overwritten. It governs every
// kind of node; directories that exist are always entered.
type Policy uint8

const (
	// IfChanged trusts a file of the same size and modification time
	// (nanoseconds). Others are compared range by range with the snapshot and
	// changed where they differ. Owner, mode and extended attributes are
	// compared always.
	IfChanged Policy = iota
	// Always compares the contents of every file, whatever its time says.
	Always
	// IfNewer restores only what the snapshot knows with a later modification
	// time, and leaves all else that exists untouched.
	IfNewer
	// Never creates what is missing and leaves untouched what exists.
	Never
)

// Options changes what Run does. The zero value restores everything that
// differs and deletes nothing.
type Options struct {
	// Include and Exclude are globs of doublestar's syntax over the path
	// relative to the item's root. A path is restored if there is no Include
	// or one matches it or a parent of it, and no Exclude matches it or a
	// parent of it. Parents of included paths are created with their stored
	// attributes; those that exist keep theirs. "a/**" matches a too.
	Include, Exclude []string

	Overwrite Policy

	// Delete removes what the snapshot does not hold: inside the items'
	// directories only, only paths that the filters would restore, never on
	// another file system, and in no directory whose stored listing is
	// damaged. Run first counts and returns *DeleteRefusedError, with nothing
	// changed, when more than MaxDelete (a share, 0 to 1; 0 means 0.1) of the
	// entries of those directories would go. Yes skips that check.
	Delete    bool
	MaxDelete float64
	Yes       bool

	// Spare, if not nil, names directories and files by device and inode that
	// Delete leaves alone with all that is in them: the repository itself, which
	// no snapshot of its surroundings holds.
	Spare func(dev, ino uint64) bool

	InPlace bool // rewrite only differing ranges of existing files, within them
	Sparse  bool // zeros become holes also where the snapshot has none
	Verify  bool // read every file back, those also that look unchanged
	DryRun  bool // change nothing, tell Observer.Planned

	// Sum computes the ID that stored extents bear, so that ranges of the
	// target are compared without fetching. nil: fetch and compare.
	Sum func(p []byte) chunk.ID
	// Prefetch, if not nil, is told which chunks will be read soon. It must
	// not keep the slice, and should return at once.
	Prefetch func(ctx context.Context, ids []chunk.ID)
	// Ahead is how many bytes Prefetch is worth to be told ahead of reading, where
	// each request to the snapshot takes long; 0: a few megabytes of each file.
	Ahead int64

	Workers  int // files restored at once; 0: GOMAXPROCS, where Ahead is set 4 at least and 8 at most
	Observer Observer

	// Receipt, if not nil, gets what was restored, as lines of JSON; see
	// ReceiptLine. It is complete only if Run returns no error about it.
	Receipt io.Writer
	Source  string // what is restored, for the receipt's first line
}

// Totals counts what a Run did, or, with DryRun, would do.
type Totals struct {
	Created, Changed, Meta, Deleted, Kept int64 // entries, by Op
	Problems                              int64
	Files                                 int64 // names of regular files restored or kept
	Bytes                                 int64 // sum of their sizes
	BytesRead                             int64 // fetched from the snapshot
	BytesWrite                            int64 // of contents written to the target
}

// DeleteRefusedError says that Delete would take too much.
type DeleteRefusedError struct {
	Delete, Total int64 // entries
	Max           float64
}

func (e *DeleteRefusedError) Error() string {
	return fmt.Sprintf("deleting %d of %d entries of the target is more than the allowed %.0f %%; nothing was changed: check the target with a dry run, then say yes", e.Delete, e.Total, 100*e.Max)
}

// Run restores items below target, a directory, which is made if missing.
//
// Problems of single entries do not end it: they are told to the Observer,
// and the error is then a *ProblemsError. A full target, a cancelled ctx and
// a refused deletion do end it. What is finished stays, and the next Run
// continues. Totals are true also beside an error.
func Run(ctx context.Context, items []Item, target string, opt Options) (Totals, error) {
	r, err := newRun(items, opt)
	if err != nil {
		return Totals{}, err
	}
	if err := r.openTarget(target); err != nil {
		return Totals{}, err
	}
	defer r.close()
	var refused error
	if opt.Delete && !opt.Yes {
		if refused = r.mayDelete(ctx, items); refused != nil && !opt.DryRun {
			return Totals{}, refused
		}
	}
	ctx, r.stop = context.WithCancelCause(ctx)
	r.ctx = ctx
	defer r.stop(nil)
	r.receipt.start(target, opt.Source)
	r.restore(ctx, items)
	r.finishLate()
	if err := r.sync(); err != nil {
		r.problem(target, err)
	}
	if ctx.Err() == nil {
		r.receipt.end(r.totals)
	}
	return r.totals, r.result(ctx, refused)
}

// run is one Run.
type run struct {
	opt    Options
	filter *filter
	root   int             // the target's descriptor; -1 in a dry run without a target
	super  bool            // may set owners
	ctx    context.Context // ends with the run
	stop   context.CancelCauseFunc
	jobs   chan *job
	undone atomic.Int64  // names that were enqueued, and that no worker has done
	did    chan struct{} // holds something when a worker has done one
	dirs   atomic.Int32  // directories that are open

	mu       sync.Mutex // guards what follows, and the Observer
	totals   Totals
	problems ProblemsError
	receipt  receiptWriter
	devs     map[uint64]int // a descriptor per file system entered
	late     []lateMode
	claims   map[inode]linkKey

	groups    map[linkKey]*group // the walker's alone
	ahead     lookahead          // likewise
	held      []*dir             // likewise
	mayRemove int64              // entries that Delete may still remove; guarded by mu
}

func newRun(items []Item, opt Options) (*run, error) {
	if opt.Workers <= 0 {
		opt.Workers = runtime.GOMAXPROCS(0)
		if opt.Ahead > 0 { // some wait, and Ahead is shared by all
			opt.Workers = min(max(opt.Workers, 4), 8)
		}
	}
	if opt.MaxDelete == 0 {
		opt.MaxDelete = 0.1
	}
	if !(opt.MaxDelete > 0 && opt.MaxDelete <= 1) {
		return nil, fmt.Errorf("%v is no share of the target: want more than 0 and at most 1", opt.MaxDelete)
	}
	if opt.Overwrite > Never {
		return nil, fmt.Errorf("unknown overwrite policy %d", opt.Overwrite)
	}
	f, err := newFilter(opt.Include, opt.Exclude)
	if err != nil {
		return nil, err
	}
	if err := checkItems(items); err != nil {
		return nil, err
	}
	r := &run{
		opt: opt, filter: f, root: -1, super: os.Geteuid() == 0,
		jobs: make(chan *job, 4*opt.Workers), did: make(chan struct{}, 1),
		devs:   map[uint64]int{},
		claims: map[inode]linkKey{}, groups: map[linkKey]*group{},
		mayRemove: 1<<63 - 1,
	}
	if opt.DryRun {
		opt.Receipt = nil
	}
	r.receipt.w = opt.Receipt
	return r, nil
}

// checkItems refuses paths that leave the target, and items within items:
// each would undo the other's work.
func checkItems(items []Item) error {
	for i, it := range items {
		if it.Node == nil {
			return fmt.Errorf("item %q has no node", it.Path)
		}
		if it.Path == "" {
			if it.Node.Attr().Kind != tree.Dir {
				return errors.New("a single file needs a name below the target")
			}
		} else {
			for name := range strings.SplitSeq(it.Path, "/") {
				if err := checkName(name); err != nil {
					return fmt.Errorf("path %q below the target: %w", it.Path, err)
				}
			}
		}
		for _, o := range items[:i] {
			if within(it.Path, o.Path) || within(o.Path, it.Path) {
				return fmt.Errorf("%q and %q lie within each other: restore them one after the other", it.Path, o.Path)
			}
		}
	}
	return nil
}

func within(p, dir string) bool {
	return dir == "" || p == dir || strings.HasPrefix(p, dir+"/")
}

// openTarget opens the target, which it makes if need be.
func (r *run) openTarget(target string) error {
	if !r.opt.DryRun {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		if r.opt.DryRun && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	defer root.Close()
	f, err := root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	r.root, err = dup(int(f.Fd()))
	return err
}

func (r *run) close() {
	if r.root >= 0 {
		unix.Close(r.root)
	}
	for _, fd := range r.devs {
		unix.Close(fd)
	}
}

// restore walks the items and waits for the workers.
func (r *run) restore(ctx context.Context, items []Item) {
	var wg sync.WaitGroup
	for range r.opt.Workers {
		wg.Go(func() {
			w := newWorker(r)
			for j := range r.jobs {
				w.do(ctx, j)
				r.undone.Add(-1)
				select {
				case r.did <- struct{}{}:
				default:
				}
			}
		})
	}
	for _, it := range items {
		if ctx.Err() != nil {
			break
		}
		r.item(ctx, it)
	}
	r.flush(ctx)
	close(r.jobs)
	wg.Wait()
	for _, d := range r.held {
		r.release(d)
	}
}

// sync makes durable what was written, on every file system that was entered.
func (r *run) sync() error {
	if r.opt.DryRun {
		return nil
	}
	for _, fd := range r.devs {
		if err := unix.Syncfs(fd); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	return nil
}

// result joins what ended the run with what went wrong on the way.
func (r *run) result(ctx context.Context, refused error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	if err := context.Cause(ctx); err != nil {
		errs = append(errs, err)
	}
	if refused != nil {
		errs = append(errs, refused)
	}
	if r.receipt.err != nil {
		errs = append(errs, fmt.Errorf("receipt: %w", r.receipt.err))
	}
	if r.problems.Count > 0 {
		p := r.problems
		errs = append(errs, &p)
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}
