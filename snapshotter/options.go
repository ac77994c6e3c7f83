package snapshotter

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// ErrPartial says that a snapshot was committed although some of its sources
// could not be read; the record names them.
var ErrPartial = errors.New("snapshot is partial")

// Take is what a filter says of a node.
type Take int

const (
	Whole   Take = iota // with all below
	Skip                // not at all
	Shallow             // a directory without what is below
	Bare                // without a file's contents, and without attributes that people set
)

// What a snapshot has of its sources, as the record says it.
const (
	Full     = "full"     // everything
	Light    = "light"    // names and attributes of all, contents of some
	Dataless = "dataless" // names and attributes: reading a file gives ENODATA
)

// Options of a Run. Name, Paths and Now are required.
type Options struct {
	Name, Label, Note string
	Tags              []string
	Host, Program     string
	Exclude           []string // as the record tells it; Filter does it
	Mode              string   // Full, also if empty, Light or Dataless: as the record tells it; Filter does it
	Data              []string // of which a light one has the contents, as the record tells it
	Workers           int      // 0: one for each core

	// Filter is asked for each node below the root; path is relative to the
	// root, slash-separated. It is called from one goroutine.
	Filter func(path string, a *tree.Attr) Take

	// Finish is called when everything has been read, before the snapshot is
	// committed, and may complete the record. If it fails nothing is committed.
	// May be nil.
	Finish func(ctx context.Context, rec *repo.Snapshot) error

	// NoParent reads every file, as if there were no snapshot before.
	NoParent bool

	Now      func() time.Time
	Progress *Progress                     // may be nil
	Problem  func(path string, err error)  // each source that cannot be read, as it happens; may be nil
	Warnf    func(format string, a ...any) // what somebody should look at; may be nil
	Logf     func(format string, a ...any) // what went on; may be nil
}

func (o *Options) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return runtime.GOMAXPROCS(0)
}

// Progress counts while a Run goes on; it may be read at any time.
type Progress struct {
	Files     atomic.Uint64 // done, unchanged ones included
	Dirs      atomic.Uint64
	Bytes     atomic.Uint64 // of files done or being read, unchanged ones included
	ReadBytes atomic.Uint64
	New       atomic.Uint64 // files
	Modified  atomic.Uint64
	Unchanged atomic.Uint64
	NewBytes  atomic.Uint64 // plain bytes that were not known; KnownBytes those that were
	Known     atomic.Uint64
	Unread    atomic.Uint64
}

// maxProblems is how many unreadable paths a record names.
const maxProblems = 1000
