package repo

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// CheckOptions say how deep to look. ReadData, Sample and MaxAge each choose
// packs to read, and one chosen by any of them is read; those that nobody has
// looked at yet come first, then those that were looked at the longest time ago.
type CheckOptions struct {
	ReadData bool          // read every pack, and prove every chunk
	Sample   float64       // the share of packs to read, 0 to 1
	Seed     uint64        // which packs that are
	MaxAge   time.Duration // read packs that were not proven, chunk by chunk, for that long; 0: whatever their age

	// The budget ends the reading of packs, not the check: no pack is begun after
	// that time, by Options.Now, nor one that would make it more bytes. One pack
	// always is read. 0: no limit.
	Budget      time.Duration
	BudgetBytes int64

	// Heal mends what parity covers: chunks of damaged packs are stored anew,
	// and damaged parity is made anew. It needs keys that may write.
	Heal bool

	Snapshots []*Snapshot // whose trees to walk; nil: all
	Progress  *CheckProgress
}

// CheckProgress counts while a check goes on; it may be read at any time.
type CheckProgress struct {
	Objects, Packs, PacksTotal, Bytes, BytesTotal, Snapshots, SnapshotsTotal, Pages atomic.Uint64
}

// Damage is one thing that is wrong, named as far as it reaches: an object of
// the repository, a chunk, a file or directory, a snapshot, a node. What is
// unknown or does not apply is empty.
type Damage struct {
	Object   string
	Chunk    chunk.ID
	Path     string
	Snapshot *Snapshot
	// Node is whose files these are: the member of a cluster snapshot, else the
	// snapshot's host, else its name.
	Node string
	Err  error
	// Healed tells that it was mended at once: nothing is lost, and it counts
	// for none of CheckResult.Damages.
	Healed bool
	// Known tells of what a repair could not bring back: the snapshot is the one
	// that does without it, and its record says so. It counts for CheckResult.Known
	// only.
	Known bool
}

// CheckResult sums up a check.
type CheckResult struct {
	Objects, Packs, Orphans, Chunks, Pages, Snapshots, Damages uint64
	Read, Bytes                                                uint64 // packs read, and bytes of them
	Left, LeftBytes                                            uint64 // packs that the budget did not reach
	Healed                                                     uint64 // findings of which nothing is lost
	Known                                                      uint64 // findings that a repair wrote down
	Dead                                                       int    // intents of writers that may be dead
	Unknown                                                    []string
	Refused                                                    []error // records that their writers were not allowed to sign

	// Coverage is what the ledger says after the check.
	Coverage *Coverage
	// LedgerErr tells why what was found of packs is not, or not all, in the
	// ledger: seal.ErrNoKey if the keys are not the owner's, or the backend's.
	LedgerErr error
}

type checker struct {
	r      *Repo
	opt    CheckOptions
	p      *CheckProgress
	report func(Damage)

	verified map[pack.Name]LedgerEntry // what the ledger said before
	sums     maphash.Seed
	pages    map[halfID]pageSums // pages seen

	mu     sync.Mutex
	res    CheckResult
	packs  map[pack.Name]int64      // that exist
	state  map[pack.Name]*packState // of those that are not whole
	looked map[pack.Name]struct{}   // that were read
	told   map[pack.Name]struct{}   // that were reported
	found  []LedgerEntry            // not yet in the ledger
	noted  time.Time                // when the ledger was last written
	broken map[chunk.ID]struct{}    // chunks and pages that were looked for twice
	heal   repairs
}

// Check looks for damage and reports each as it is found, one at a time. It may
// run beside everything else, and what others do meanwhile (snapshots, forget,
// prune) is no damage. What it finds of packs it writes into the ledger, now and
// then and at the end, also if ctx ends. The error is of what kept it from
// looking, not of what it found.
func (r *Repo) Check(ctx context.Context, opt CheckOptions, report func(Damage)) (CheckResult, error) {
	c := &checker{r: r, opt: opt, p: opt.Progress, sums: maphash.MakeSeed(), pages: map[halfID]pageSums{},
		packs: map[pack.Name]int64{}, state: map[pack.Name]*packState{}, looked: map[pack.Name]struct{}{}, told: map[pack.Name]struct{}{},
		noted: r.opt.Now(), broken: map[chunk.ID]struct{}{}, heal: newRepairs()}
	if c.p == nil {
		c.p = &CheckProgress{}
	}
	c.report = func(d Damage) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if d.Known {
			c.res.Known++
		} else if d.Healed {
			c.res.Healed++
		} else {
			c.res.Damages++
		}
		report(d)
	}
	err := c.run(ctx)
	return c.res, err
}

func (c *checker) run(ctx context.Context) error {
	if err := c.r.Readable(); err != nil {
		return err
	}
	if err := c.r.readWriters(ctx); err != nil {
		return err
	}
	if err := c.objects(ctx); err != nil {
		return err
	}
	if err := c.r.Sync(ctx); err != nil && !unproven(err) {
		return err // damaged segments were named by objects
	}
	if err := c.checkPacks(ctx); err != nil {
		return err
	}
	if err := c.trees(ctx); err != nil {
		return err
	}
	return ctx.Err()
}

// kinds tells what lies under each prefix; zero: packs.
var kinds = map[string]seal.Kind{
	"config": seal.KindConfig, "keys": seal.KindKey, "writers": seal.KindWriter, "index": seal.KindSegment, "intents": seal.KindIntent,
	"snapshots": seal.KindSnapshot, "marks": seal.KindMark, "condemned": seal.KindCondemned, "forgotten": seal.KindForgotten,
	"ledger": seal.KindLedger, "parity": seal.KindParity, "packs": seal.KindPack,
}

// objects proves everything but packs, and lists the packs.
func (c *checker) objects(ctx context.Context) error {
	for info, err := range c.r.b.List(ctx, "") {
		if err != nil {
			return err
		}
		prefix, _, _ := strings.Cut(info.Name, "/")
		kind, ok := kinds[prefix]
		switch {
		case !ok:
			c.res.Unknown = append(c.res.Unknown, info.Name)
		case kind == seal.KindPack:
			name, ok := pack.ParseObject(info.Name)
			if !ok {
				c.res.Unknown = append(c.res.Unknown, info.Name)
				continue
			}
			c.packs[name] = info.Size
		case kind == seal.KindParity:
			// Proven when its pack is read: it is as much use as the pack's bytes.
			name, ok := parity.ParseObject(info.Name)
			if !ok {
				c.res.Unknown = append(c.res.Unknown, info.Name)
				continue
			}
			c.heal.parity[name] = info
		default:
			if kind == seal.KindIntent && !strings.Contains(info.Name, ".") {
				c.res.Dead++
			}
			c.object(ctx, info, kind)
		}
		c.res.Objects++
		c.p.Objects.Add(1)
	}
	slices.Sort(c.res.Unknown)
	return ctx.Err()
}

func (c *checker) object(ctx context.Context, info backend.Info, kind seal.Kind) {
	err := c.objectError(ctx, info, kind)
	if errors.Is(err, ErrRefused) {
		c.res.Refused = append(c.res.Refused, err)
		return
	}
	if err != nil {
		c.report(Damage{Object: info.Name, Err: err})
	}
}

// objectError returns what is wrong with an object; nil if it is gone.
func (c *checker) objectError(ctx context.Context, info backend.Info, kind seal.Kind) error {
	p, err := c.r.b.Get(ctx, info.Name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
		return nil
	}
	if err == nil {
		if kind == seal.KindKey {
			err = c.r.checkKey(info.Name, p)
		} else {
			err = c.open(info.Name, kind, p)
		}
		if errors.Is(err, seal.ErrNoKey) && c.r.readWriters(ctx) == nil {
			// Its writer may be newer than what was known of writers.
			err = c.open(info.Name, kind, p)
		}
	}
	return err
}

func (c *checker) open(name string, kind seal.Kind, p []byte) error {
	if kind == seal.KindSnapshot {
		id, ok := ParseID(strings.TrimPrefix(name, "snapshots/"))
		if !ok {
			return fmt.Errorf("%s: not the name of a snapshot: %w", name, chunk.ErrCorrupt)
		}
		_, err := c.r.parseRecord(name, id, p)
		return err
	}
	if ownersKinds[kind] {
		_, err := c.r.openOwners(name, kind, p)
		return err
	}
	_, err := c.r.k.OpenAs(name, kind, p)
	return formatError(err)
}
