package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// Op is what happens to one path.
type Op uint8

const (
	Keep   Op = iota // stays as it is
	Create           // did not exist
	Change           // contents or kind differ; or a name that must be another file's
	Meta             // only owner, mode, times or extended attributes differ
	Delete           // not in the snapshot
)

var opNames = [...]string{Keep: "keep", Create: "create", Change: "change", Meta: "meta", Delete: "delete"}

func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Action is what is planned for, or was done to, one path.
type Action struct {
	Op         Op
	Path       string // below the target, slash-separated, any bytes; "." is the target
	BytesRead  int64  // to fetch from the snapshot; without Options.Sum the most it can be
	BytesWrite int64  // of contents to write to the target
}

// Observer is told what happens. Any field may be nil. Calls come one at a
// time, from several goroutines, and delay the restore until they return.
type Observer struct {
	Planned  func(Action)                 // DryRun: what would be done
	Done     func(Action)                 // what was done
	Progress func(read, write int64)      // bytes since the last call, within files
	Problem  func(path string, err error) // what could not be restored, or not fully
}

// ProblemsError is what Run returns when single entries could not be restored
// fully: the first 100 of them, and how many there were.
type ProblemsError struct {
	Count int64
	First []*fs.PathError // Path is below the target
}

const maxProblems = 100

func (e *ProblemsError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d entries were not restored fully:", e.Count)
	for i, p := range e.First {
		if i == 10 {
			break
		}
		fmt.Fprintf(&b, "\n%q: %v", p.Path, p.Err)
	}
	if e.Count > 10 {
		fmt.Fprintf(&b, "\nand %d more", e.Count-10)
	}
	return b.String()
}

// Unwrap returns First, so that errors.Is sees each of them.
func (e *ProblemsError) Unwrap() []error {
	errs := make([]error, len(e.First))
	for i, p := range e.First {
		errs[i] = p
	}
	return errs
}

// done records an action. a is the node's attributes if the path now is what
// the node is; line, if not nil, goes to the receipt.
func (r *run) done(act Action, a *tree.Attr, line *ReceiptLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &r.totals
	switch act.Op {
	case Keep:
		t.Kept++
	case Create:
		t.Created++
	case Change:
		t.Changed++
	case Meta:
		t.Meta++
	case Delete:
		t.Deleted++
	}
	t.BytesRead += act.BytesRead
	t.BytesWrite += act.BytesWrite
	if a != nil && a.Kind == tree.File {
		t.Files++
		t.Bytes += a.Size
	}
	if line != nil {
		r.receipt.line(line)
	}
	if f := r.opt.Observer.Planned; f != nil && r.opt.DryRun {
		f(act)
	}
	if f := r.opt.Observer.Done; f != nil && !r.opt.DryRun {
		f(act)
	}
}

func (r *run) progress(read, write int64) {
	if f := r.opt.Observer.Progress; f != nil && !r.opt.DryRun {
		r.mu.Lock()
		defer r.mu.Unlock()
		f(read, write)
	}
}

// errFull ends a run: every further file would meet it too.
var errFull = errors.New("the target is full: make room and run the restore again, finished files are kept")

// problem records that path could not be restored fully. It ends the run when
// the next entries would fare no better.
func (r *run) problem(path string, err error) {
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, full) {
			r.stop(fmt.Errorf("%w (%w)", errFull, full))
		}
	}
	pe := &fs.PathError{Op: "restore", Path: path, Err: err}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.totals.Problems++
	r.problems.Count++
	if len(r.problems.First) < maxProblems {
		r.problems.First = append(r.problems.First, pe)
	}
	if f := r.opt.Observer.Problem; f != nil {
		f(path, err)
	}
}
