package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// ErrNoLock says that a repository's objects are not locked.
var ErrNoLock = errors.New("nothing is locked in this repository")

// LockOptions say how to lengthen locks.
type LockOptions struct {
	DryRun   bool // only tell how things are
	Progress *LockProgress
}

// LockProgress counts while locks are lengthened; it may be read at any time.
type LockProgress struct {
	Plan             PruneProgress
	Objects, Renewed atomic.Uint64
}

// LockResult tells how what live snapshots need is locked.
type LockResult struct {
	Kinds map[string]KindLocks // by the folder that the objects are in

	// Exposed are objects that were needed and not locked, and Changed those
	// that somebody has overwritten or removed, although their first version is
	// there and was locked. Both name a hundred at most, in order.
	Exposed, Changed           []string
	ExposedCount, ChangedCount uint64

	// Guessed: a snapshot could not be read, so that nobody knows what is needed.
	// All packs were taken for needed.
	Guessed error
}

// KindLocks counts the objects of one kind.
type KindLocks struct {
	Objects, Bytes uint64
	Renewed        uint64    // their locks were lengthened; of a dry run, would be
	First          time.Time // when the first lock ends, now
}

// lockers is how many locks are looked at or lengthened at once.
const lockers = 16

// manyNames is how many objects are named at most.
const manyNames = 100

// KeepLocks makes the locks of all that live snapshots need last for the period of
// the config from now on: where less than half of that is left, and of nothing
// else. What is condemned is not locked any longer. Prune does the same.
//
// It locks what was stored first under each name: that somebody has overwritten or
// removed it, is told and changes nothing. Where a snapshot cannot be read all
// packs are locked that are not condemned, and LockResult.Guessed tells why. A
// repository without locks is ErrNoLock. It may run beside anything.
func (r *Repo) KeepLocks(ctx context.Context, opt LockOptions) (LockResult, error) {
	if r.readOnly != nil {
		return LockResult{}, r.readOnly
	}
	if r.vault == nil {
		return LockResult{}, ErrNoLock
	}
	if opt.Progress == nil {
		opt.Progress = &LockProgress{}
	}
	p := &pruner{r: r, opt: PruneOptions{DryRun: true, MaxRepack: -1, Warnf: r.opt.Logf, Grace: DefaultGrace}, p: &opt.Progress.Plan, see: view{r: r}, stay: map[pack.Name]error{}}
	guessed := p.plan(ctx)
	if ctx.Err() != nil {
		return LockResult{}, guessed
	}
	return r.keepLocks(ctx, p, guessed, opt)
}

// keeper is one run of KeepLocks.
type keeper struct {
	r    *Repo
	opt  LockOptions
	old  *backend.OldestOf
	hint *lockHints
	now  time.Time

	mu  sync.Mutex
	res LockResult
	err error
}

// keepLocks lengthens the locks after p has made its plan, or has failed to.
func (r *Repo) keepLocks(ctx context.Context, p *pruner, guessed error, opt LockOptions) (LockResult, error) {
	if opt.Progress == nil {
		opt.Progress = &LockProgress{}
	}
	k := &keeper{r: r, opt: opt, old: r.genuine(), hint: r.openHints(), now: r.opt.Now(), res: LockResult{Kinds: map[string]KindLocks{}, Guessed: guessed}}
	r.mu.Lock()
	hidden, err := r.forgotten(ctx)
	r.mu.Unlock()
	if err != nil {
		return k.res, err
	}
	wanted := p.wanted()
	snapshot := func(last string) bool {
		base, _, _ := strings.Cut(last, "-")
		_, gone := hidden[base]
		return !gone
	}
	records, err := r.names(ctx, "snapshots/")
	if err != nil {
		return k.res, err
	}
	for _, kind := range []struct {
		prefix string
		want   func(last string, info backend.Info) bool
	}{
		{"config/", func(string, backend.Info) bool { return true }},
		{"keys/", func(last string, _ backend.Info) bool { return !r.keyRemoved(last) }},
		{"writers/", func(string, backend.Info) bool { return true }},
		{"snapshots/", func(last string, _ backend.Info) bool { return snapshot(last) }},
		{"marks/", func(last string, _ backend.Info) bool {
			base, _, _ := strings.Cut(last, "-")
			_, there := records[base]
			return there && snapshot(last)
		}},
		// Small ones are let go: prune stores them anew, together, when their
		// locks have passed, and the packs tell what they told, too.
		{"index/", func(_ string, info backend.Info) bool { return info.Size > r.ix.Small() }},
		{"packs/", func(_ string, info backend.Info) bool { n, ok := pack.ParseObject(info.Name); return ok && wanted(n) }},
		{"parity/", func(last string, _ backend.Info) bool { n, ok := parsePackName(last); return ok && wanted(n) }},
	} {
		if err := k.kind(ctx, kind.prefix, kind.want); err != nil {
			return k.res, errors.Join(err, k.hint.save(k.now))
		}
	}
	slices.Sort(k.res.Exposed)
	slices.Sort(k.res.Changed)
	if err := k.hint.save(k.now); err != nil {
		r.opt.Logf("what is known of locks is not kept: %v", err)
	}
	return k.res, nil
}

// wanted returns which packs have to stay locked: those of which something is
// needed, but for condemned ones of which all that is has been copied; where
// something that is needed is in none that can be seen, those that somebody has
// hidden, too. Where nobody knows what is needed, all: of what is condemned nobody
// knows whether it was copied.
func (p *pruner) wanted() func(pack.Name) bool {
	copied := map[pack.Name]bool{}
	for id, rec := range p.records {
		for _, name := range rec.packs {
			copied[name] = p.ready[id] && p.stay[name] == nil && p.locked != nil
		}
	}
	return func(name pack.Name) bool {
		if p.needed == nil {
			return true
		}
		if _, listed := p.see.packs[name]; !listed && p.res.Homeless > 0 {
			return true // somebody has hidden it
		}
		return p.needed[name] && !copied[name]
	}
}

// kind goes through the objects below a prefix.
func (k *keeper) kind(ctx context.Context, prefix string, want func(string, backend.Info) bool) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	work := make(chan backend.Stack)
	var group sync.WaitGroup
	for range lockers {
		group.Go(func() {
			for s := range work {
				if err := k.one(ctx, prefix, s); err != nil {
					k.mu.Lock()
					if k.err == nil {
						k.err = err
					}
					k.mu.Unlock()
					stop()
				}
			}
		})
	}
	var err error
	for s, lerr := range backend.Stacks(ctx, k.r.vault, prefix) {
		if err = lerr; err != nil {
			break
		}
		if want(strings.TrimPrefix(s.Name, prefix), s.Oldest.Info) {
			work <- s
		}
	}
	close(work)
	group.Wait()
	if k.err != nil {
		return k.err
	}
	return err
}

// one looks at one object, and lengthens its lock if less than half of the period
// is left.
func (k *keeper) one(ctx context.Context, prefix string, s backend.Stack) error {
	v, changed, err := k.genuine(ctx, s)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	period := k.r.cfg.LockPeriod()
	enough, renewed := k.now.Add(period/2), false
	until, exposed := v.ModTime.Add(period), false
	if known := k.hint.known(s.Name); known.After(until) && s.Shown {
		until = known
	}
	if until.Before(enough) {
		if until, err = k.r.vault.LockedUntil(ctx, s.Name, v.ID); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		exposed = !until.After(k.now)
	}
	if until.Before(enough) {
		renewed = true
		if !k.opt.DryRun {
			until = k.now.Add(period)
			if err := k.r.vault.Lock(ctx, s.Name, v.ID, until); errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	if s.Shown {
		k.hint.learn(s.Name, until)
	}
	k.count(prefix, s.Name, v.Size, until, renewed, exposed, changed)
	return nil
}

// genuine returns which version of an object to lock, and whether another one is
// seen in its place.
func (k *keeper) genuine(ctx context.Context, s backend.Stack) (v backend.Version, changed bool, err error) {
	if s.Versions == 1 {
		return s.Oldest, !s.Shown, nil
	}
	if v, err = k.old.Choose(ctx, s.Name); err != nil {
		return v, false, err
	}
	same, err := sameAsShown(ctx, k.r.vault, v)
	return v, !same, err
}

// sameAsShown reports whether what Get returns is a version's bytes.
func sameAsShown(ctx context.Context, v backend.Vault, genuine backend.Version) (bool, error) {
	if genuine.Latest {
		return true, nil
	}
	shown, err := v.Get(ctx, genuine.Name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || int64(len(shown)) != genuine.Size {
		return false, err
	}
	p, err := v.GetVersion(ctx, genuine.Name, genuine.ID, 0, -1)
	return bytes.Equal(p, shown), err
}

func (k *keeper) count(prefix, name string, size int64, until time.Time, renewed, exposed, changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	kind := k.res.Kinds[strings.TrimSuffix(prefix, "/")]
	kind.Objects++
	kind.Bytes += uint64(size)
	k.opt.Progress.Objects.Add(1)
	if renewed {
		kind.Renewed++
		k.opt.Progress.Renewed.Add(1)
	}
	if kind.First.IsZero() || until.Before(kind.First) {
		kind.First = until
	}
	k.res.Kinds[strings.TrimSuffix(prefix, "/")] = kind
	if exposed {
		if k.res.ExposedCount++; len(k.res.Exposed) < manyNames {
			k.res.Exposed = append(k.res.Exposed, name)
		}
	}
	if changed {
		if k.res.ChangedCount++; len(k.res.Changed) < manyNames {
			k.res.Changed = append(k.res.Changed, name)
		}
	}
}

// keepLocked lengthens the locks of packs that a session leans on, before its
// record is put: each is then locked for half of the period at least. Those of
// which that is known need no request.
func (r *Repo) keepLocked(ctx context.Context, packs []pack.Name, put map[pack.Name]time.Time, began time.Time) error {
	hint, now, period, old := r.openHints(), r.opt.Now(), r.cfg.LockPeriod(), r.genuine()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	work := make(chan pack.Name)
	var group sync.WaitGroup
	for range lockers {
		group.Go(func() {
			for name := range work {
				if err := r.keepPack(ctx, hint, old, name, now.Add(period/2), now.Add(period)); err != nil {
					stop(err)
				}
			}
		})
	}
	for _, name := range packs {
		at, ok := put[name]
		if !ok {
			at = began // it is this session's
		}
		if at.Add(period).Before(now.Add(period/2)) && hint.known(name.Object()).Before(now.Add(period/2)) && ctx.Err() == nil {
			work <- name
		}
	}
	close(work)
	group.Wait()
	if err := hint.save(now); err != nil {
		r.opt.Logf("what is known of locks is not kept: %v", err)
	}
	return context.Cause(ctx)
}

// keepPack lengthens the lock of what was stored first: what somebody has stored
// over it may be locked for long, and be junk.
func (r *Repo) keepPack(ctx context.Context, hint *lockHints, old *backend.OldestOf, name pack.Name, enough, until time.Time) error {
	v, err := old.Choose(ctx, name.Object())
	var have time.Time
	if err == nil {
		have, err = r.vault.LockedUntil(ctx, name.Object(), v.ID)
	}
	if err == nil && have.Before(enough) {
		have = until
		err = r.vault.Lock(ctx, name.Object(), v.ID, until)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pack %s, which this snapshot leans on, is gone: %w; run again", name, chunk.ErrMissing)
	}
	if err != nil {
		return fmt.Errorf("pack %s, which this snapshot leans on, cannot be locked: %w", name, err)
	}
	hint.learn(name.Object(), have)
	return nil
}
