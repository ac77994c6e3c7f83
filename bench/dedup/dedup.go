package dedup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// Fixed cuts at multiples of Column.Avg, counted from the start of the file.
// Blocks that hold nothing but zeros count as zeros.
const Fixed chunk.SplitterKind = "fixed"

// Column is one way of cutting.
type Column struct {
	Kind chunk.SplitterKind // chunk.Rabin, chunk.Gear or Fixed
	Avg  int                // bytes, a power of two; minimum and maximum as in chunk.NewParams
}

// String returns kind and size, as in "gear-64KiB".
func (c Column) String() string {
	if c.Avg >= 1<<20 {
		return fmt.Sprintf("%s-%dMiB", c.Kind, c.Avg>>20)
	}
	return fmt.Sprintf("%s-%dKiB", c.Kind, c.Avg>>10)
}

// DefaultColumns returns what is compared if nothing else is asked for.
func DefaultColumns() []Column {
	return []Column{
		{chunk.Rabin, 64 << 10},
		{chunk.Gear, 16 << 10}, {chunk.Gear, 64 << 10}, {chunk.Gear, 256 << 10}, {chunk.Gear, 1 << 20},
		{Fixed, 64 << 10}, {Fixed, 4 << 20},
	}
}

// Bounds and defaults of Options.
const (
	DefaultDistinct = 3 << 19   // distinct chunks: 16 MiB a column
	DefaultGroup    = 256 << 10 // bytes
	MaxColumns      = 32
	maxErrors       = 100 // messages kept in a Report
)

// Source is a file to read.
type Source struct {
	Path string
	Open func() (io.ReadCloser, error) // of an *os.File, holes are not read
}

// Options say what to measure. Zero fields but the source have defaults.
type Options struct {
	Paths []string                 // files and directories; symlinks below them are not followed
	Files iter.Seq2[Source, error] // instead of Paths; an error is reported and passed over

	Columns  []Column
	Distinct int // chunks that a column remembers, about 11 bytes each; see the package's doc

	// Compress appends the compressed src to dst. It is called by several
	// goroutines at once. If it is nil, nothing is compressed.
	Compress func(dst, src []byte) []byte
	Group    int // bytes of new chunks that are compressed together

	// Progress is told, now and then and by one goroutine, how much was read.
	Progress func(files, bytes int64, path string)
}

// Report is what was found. It is written as JSON with these names.
type Report struct {
	Files      int64    `json:"files"`      // read to their end
	Bytes      int64    `json:"bytes"`      // read: all but holes
	HoleBytes  int64    `json:"hole_bytes"` // of sparse files, not read
	HardLinks  int64    `json:"hard_links"` // further names of files that were read already
	Unreadable int64    `json:"unreadable"` // files and directories
	Errors     []string `json:"errors"`     // the first of them
	Seconds    float64  `json:"seconds"`    // for all columns together
	Columns    []Result `json:"columns"`
}

// Result is one column. Bytes are of chunks before compression if not said
// otherwise.
type Result struct {
	Column   string `json:"column"`
	Splitter string `json:"splitter"`
	Average  int    `json:"average"` // bytes, as asked for

	Chunks    int64 `json:"chunks"`
	Bytes     int64 `json:"bytes"`      // in chunks
	ZeroBytes int64 `json:"zero_bytes"` // in zero runs, or in blocks of zeros

	UniqueChunks int64 `json:"unique_chunks"`
	UniqueBytes  int64 `json:"unique_bytes"`
	StoredBytes  int64 `json:"stored_bytes"` // unique and compressed; 0 without Options.Compress

	// Dedup is all that was read by what is unique of it, Ratio by what is
	// stored of it; 0 where nothing is.
	Dedup float64 `json:"dedup"`
	Ratio float64 `json:"ratio"`

	// Sampled is the share of hashes that were remembered at the end: 1 if
	// all of the above is exact. Error is the relative standard error of
	// UniqueBytes; that of StoredBytes is about the same.
	Sampled float64 `json:"sampled"`
	Error   float64 `json:"error"`

	CPUSeconds      float64 `json:"cpu_seconds"` // cutting and hashing
	MBPerSecond     float64 `json:"mb_per_second"`
	CompressSeconds float64 `json:"compress_seconds"` // CPU time

	Histogram []Bucket `json:"histogram"` // of the lengths of all chunks
}

// Bucket counts chunks by length.
type Bucket struct {
	From   int64 `json:"from"` // bytes, a power of two; up to twice that, exclusively
	Chunks int64 `json:"chunks"`
}

// Run measures. Files that cannot be read are reported and passed over; an
// error is one of the options or of ctx.
func Run(ctx context.Context, opt Options) (*Report, error) {
	columns, err := opt.prepare()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	r := &reader{ctx: ctx, report: &Report{Errors: []string{}, Columns: []Result{}}, progress: opt.Progress, free: make(chan *batch, batches)}
	for range batches {
		r.free <- &batch{data: make([]byte, 0, batchSize)}
	}
	var group sync.WaitGroup
	for _, c := range columns {
		r.out = append(r.out, c.in)
		group.Go(func() { c.run(r.free) })
	}
	files := opt.Files
	if files == nil {
		files = r.walk(opt.Paths)
	}
	err = r.readAll(files)
	for _, out := range r.out {
		close(out)
	}
	group.Wait()
	if err != nil {
		return nil, err
	}
	r.report.Seconds = time.Since(start).Seconds()
	for _, c := range columns {
		r.report.Columns = append(r.report.Columns, c.result(r.report.Bytes))
	}
	return r.report, nil
}

// prepare fills in defaults and makes the columns.
func (opt *Options) prepare() ([]*column, error) {
	if opt.Columns == nil {
		opt.Columns = DefaultColumns()
	}
	if opt.Distinct == 0 {
		opt.Distinct = DefaultDistinct
	}
	if opt.Group == 0 {
		opt.Group = DefaultGroup
	}
	switch {
	case opt.Files == nil && len(opt.Paths) == 0:
		return nil, errors.New("nothing to measure: name a file or a directory")
	case len(opt.Columns) > MaxColumns:
		return nil, fmt.Errorf("%d columns: at most %d go side by side", len(opt.Columns), MaxColumns)
	case opt.Distinct < 16 || opt.Distinct > 1<<32:
		return nil, fmt.Errorf("%d distinct chunks to remember: want 16 to %d", opt.Distinct, int64(1)<<32)
	case opt.Group < 0 || opt.Group > 64<<20:
		return nil, fmt.Errorf("groups of %d bytes: want at most 64 MiB", opt.Group)
	}
	var columns []*column
	for _, c := range opt.Columns {
		made, err := newColumn(c, opt)
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", c, err)
		}
		columns = append(columns, made)
	}
	return columns, nil
}
