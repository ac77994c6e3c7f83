package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// Errors that a kind wraps, beside those of io/fs.
var (
	// ErrRefused says that the system, or its state, does not let it be done, and
	// that nothing was changed. The text says what would.
	ErrRefused = errors.New("refused")
	// ErrIncomplete says that what the system gave is not all that it should have
	// given. Nothing is committed.
	ErrIncomplete = errors.New("incomplete")
)

// Mode is how much of a system a snapshot has. The words are those of records.
type Mode string

const (
	Full     Mode = "full"     // everything: the only one that restores a whole system
	Light    Mode = "light"    // schema and metadata, and the chosen part of the data
	Dataless Mode = "dataless" // structure: no values and no secrets
)

// Info is what a system says of itself when it is captured; the record keeps it.
type Info struct {
	Kind    string            `json:"kind"`
	Version string            `json:"version,omitempty"` // of the system
	Cluster string            `json:"cluster,omitempty"` // its identity: what tells it from others of its kind
	Facts   map[string]string `json:"facts,omitempty"`   // more, for people and for restoring; no secrets
}

// ParseInfo reads what a record keeps. A record of no system gives a zero Info.
func ParseInfo(raw json.RawMessage) (Info, error) {
	var i Info
	if len(raw) == 0 {
		return i, nil
	}
	if err := json.Unmarshal(raw, &i); err != nil {
		return i, fmt.Errorf("what the record says of its system: %w", err)
	}
	return i, nil
}

// System is one running system, at the place that its options name. Its methods
// are for one goroutine.
type System interface {
	// Capture pins a state. An error leaves nothing pinned.
	Capture(ctx context.Context, opt CaptureOptions) (Capture, error)

	// Restore brings what n holds into the running system: all of it, or what a
	// path in the kind's view names. It refuses (ErrRefused) what would replace
	// something unless opt says that it may.
	Restore(ctx context.Context, n tree.Node, info Info, opt RestoreOptions) (Result, error)
}

// CaptureOptions say what to capture.
type CaptureOptions struct {
	Name    string // what the snapshots of this system are called
	Mode    Mode
	Data    []string // with Light: what to have the data of, in the kind's own terms
	Scratch string   // a directory for files that this capture needs, its own; removed by who made it
	State   string   // a directory that outlives the run, for what the next one must know; removed by nobody
	Now     func() time.Time
	Warnf   func(format string, a ...any) // what somebody should look at
	Logf    func(format string, a ...any) // what goes on
}

// Capture is a pinned state.
type Capture interface {
	// Root is a directory: its children are what the snapshot holds. Its nodes
	// are safe for concurrent use. Files may be tree.Openers whose extents end
	// with their records.
	Root() tree.Node

	// Finish is called once everything was read. Its error ends the snapshot.
	Finish(ctx context.Context) (Info, error)

	// Close releases the state; kept says whether the snapshot was committed, for
	// what is tidied up after a success must wait until it is one. It works after
	// ctx of Capture has ended, may be called again, and its error says what stays
	// behind.
	Close(ctx context.Context, kept bool) error
}

// Live is implemented by a Capture whose Root may be a live directory, and returns its
// path, or "" where Root is none. The modes are those of any directory then, and who
// keeps it leaves out what they leave out; Data are patterns of its files.
type Live interface{ Live() string }

// RestoreOptions say what may happen to the running system.
type RestoreOptions struct {
	Name               string // of the snapshot, as people call it
	Mode               Mode   // of the snapshot
	Path               string // in the kind's view, slash-separated; empty: everything
	Force              bool   // replace what is there
	DryRun             bool   // say what would be done, and change nothing; it is refused where it would be without
	AllowRelease       bool   // of another version
	AllowOtherCluster  bool   // into another cluster than the one captured
	Scratch            string
	State              string
	Now                func() time.Time
	Warnf, Logf, Stepf func(format string, a ...any) // Stepf: each thing done, or that would be

	// Unpack makes a directory hold what the directory n holds, and nothing else:
	// what is there and not in n is removed, so who calls it has asked before.
	// It makes dir if it is missing. With DryRun it is not to be called.
	Unpack func(ctx context.Context, n tree.Node, dir string) error
}

// Result counts what a restore did, or would do.
type Result struct {
	Items uint64 // in the kind's own terms: keys, shards, files
	Bytes uint64
	Notes []string // what is left for people to do
}

// Check refuses to restore what another release, or another cluster, has made.
// Facts that are not known on one side are not compared.
func (i Info) Check(now Info, opt RestoreOptions) error {
	switch {
	case i.Kind != now.Kind:
		return fmt.Errorf("the snapshot is of %s, this system is %s: %w", i.Kind, now.Kind, ErrRefused)
	case i.Version != "" && now.Version != "" && i.Version != now.Version && !opt.AllowRelease:
		return fmt.Errorf("the snapshot is of %s %s, this system is %s: --allow-release-change restores it all the same: %w", i.Kind, i.Version, now.Version, ErrRefused)
	case i.Cluster != "" && now.Cluster != "" && i.Cluster != now.Cluster && !opt.AllowOtherCluster:
		return fmt.Errorf("the snapshot is of cluster %q, this is %q: --allow-other-cluster restores it all the same: %w", i.Cluster, now.Cluster, ErrRefused)
	}
	return nil
}
