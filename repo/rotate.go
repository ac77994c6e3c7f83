package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// RotateOptions say how to rotate the keys.
type RotateOptions struct {
	Drop   []string // beginnings of the IDs of keys that are removed with it
	DryRun bool     // only tell
}

// RotateResult tells what became of the keys. Of a dry run, what would.
type RotateResult struct {
	Epoch   uint32    // the new one
	Granted []KeyInfo // keys that open it
	Left    []KeyInfo // keys that do not: of older programs, or not signed by the owner
	Dropped []KeyInfo // keys that were removed
	Locked  time.Time // when the last of those goes whose locks have not passed; zero: all are gone
	Damaged error     // what could not be read in keys/
}

// errOutrun says that somebody else changed the keys at the same time.
var errOutrun = errors.New("the keys were changed by somebody else at the same time; nothing is lost: see `cutbank key list` and try again")

// RotateKeys adds a key epoch, which all that is stored from now on is sealed
// for, gives it to the keys, and publishes it. Processes that are running learn
// of it when they begin a session or meet it. Data that is there is not touched
// (see RewriteEpochs). Only the owner may, with a key that opens all.
//
// The key that is used gets the new epoch, and every key for which the owner's
// signature vouches (see keyGrant). All get it before it is published, so nothing
// is sealed for what a key cannot open yet. It may be interrupted at any point:
// before the epoch is published nothing has changed, and it can be repeated with
// another epoch; after it only what was to be dropped may still be there.
func (r *Repo) RotateKeys(ctx context.Context, opt RotateOptions) (res RotateResult, err error) {
	const what = "rotating the keys"
	if err := r.ownerOnly(what); err != nil {
		return res, err
	}
	cfg, err := r.renewedConfig(ctx)
	if err == nil {
		err = r.wholeRing(what, cfg)
	}
	if err != nil {
		return res, err
	}
	states, damaged, err := r.keyStates(ctx)
	if err != nil {
		return res, err
	}
	p := rotation{r: r, cfg: cfg}
	p.res.Damaged = damaged
	if err := p.plan(states, opt.Drop); err != nil || opt.DryRun {
		return p.res, err
	}
	return p.res, p.run(ctx)
}

// rotation is one run of RotateKeys.
type rotation struct {
	r      *Repo
	cfg    Config
	epochs []seal.Epoch // all that are known, and the new one
	to     []keyOwner
	drop   []ID
	res    RotateResult
}

func (p *rotation) plan(states []*keyState, drop []string) error {
	for _, prefix := range drop {
		s, err := matchKey(states, prefix)
		if err != nil {
			return err
		}
		if s.Current {
			return fmt.Errorf("%s is the key that is being used: open the repository with another to drop it", s.ID)
		}
		if !slices.Contains(p.drop, s.ID) {
			p.drop = append(p.drop, s.ID)
			p.res.Dropped = append(p.res.Dropped, s.KeyInfo)
		}
	}
	newest := uint32(0)
	for _, e := range append(p.r.published(p.cfg), p.r.k.Ring().Epochs...) {
		newest = max(newest, e.N)
	}
	here := false
	for _, s := range states {
		newest = max(newest, s.Epoch) // of a rotation that was interrupted
		here = here || s.Current
		p.choose(s)
	}
	if me := p.r.me; !here && me != nil { // it lies in a file elsewhere
		p.choose(&keyState{KeyInfo: KeyInfo{ID: me.id, Current: true}})
	}
	if newest++; newest == 0 {
		return fmt.Errorf("no number is left for another key epoch: %w", ErrFormat)
	}
	p.res.Epoch = newest
	return nil
}

// choose decides whether a key gets the new epoch.
func (p *rotation) choose(s *keyState) {
	public := s.public
	if s.Current && public == nil && p.r.me != nil {
		public = p.r.me.recipient.Public() // it has just proven itself
	}
	switch {
	case slices.Contains(p.drop, s.ID) || s.writes:
	case slices.Contains(p.cfg.Removed, s.ID) && !s.Current, public == nil:
		p.res.Left = append(p.res.Left, s.KeyInfo)
	default:
		p.to = append(p.to, keyOwner{s.ID, public, s.Label})
		p.res.Granted = append(p.res.Granted, s.KeyInfo)
	}
}

func (p *rotation) run(ctx context.Context) error {
	r := p.r
	fresh, err := seal.NewEpoch(p.res.Epoch)
	if err != nil {
		return err
	}
	p.epochs = append(slices.Clone(r.k.Ring().Epochs), fresh)
	for _, to := range p.to {
		if err := r.grant(ctx, to, p.epochs); err != nil {
			return err
		}
	}
	if err := r.changeConfig(ctx, p.publish); err != nil {
		return err
	}
	// It is done; what follows must not be left undone by who gives up now.
	ctx = context.WithoutCancel(ctx)
	if err := r.k.AddEpoch(fresh); err != nil {
		return err
	}
	if p.cfg, err = r.renewedConfig(ctx); err != nil {
		return err
	}
	return p.tidy(ctx)
}

// publish changes the config: the step at which the rotation happens.
func (p *rotation) publish(c *Config) error {
	before, now := p.r.published(p.cfg), p.r.published(*c)
	if len(before) != len(now) || before[len(before)-1].N != now[len(now)-1].N {
		return errOutrun
	}
	for _, to := range p.to {
		if slices.Contains(c.Removed, to.id) != slices.Contains(p.cfg.Removed, to.id) {
			return errOutrun
		}
	}
	c.Epochs = nil
	for _, e := range append(now, p.epochs[len(p.epochs)-1]) {
		c.Epochs = append(c.Epochs, EpochConfig{N: e.N, Public: e.Public})
	}
	c.addRemoved(p.drop)
	return nil
}

// tidy gives the epoch to keys that were added meanwhile, and removes those that
// are dropped.
func (p *rotation) tidy(ctx context.Context) error {
	r := p.r
	if err := r.wait(ctx, r.lag()); err != nil {
		return err
	}
	states, _, err := r.keyStates(ctx)
	if err != nil {
		return err
	}
	for _, s := range states {
		switch {
		case slices.Contains(p.drop, s.ID):
			var until time.Time
			if until, err = r.removeKey(ctx, s); until.After(p.res.Locked) {
				p.res.Locked = until
			}
		case s.public != nil && s.Epoch < p.res.Epoch && !s.writes && !slices.Contains(p.cfg.Removed, s.ID):
			err = r.grant(ctx, keyOwner{s.ID, s.public, s.Label}, p.epochs)
			p.res.Granted = append(p.res.Granted, s.KeyInfo)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// grant gives epochs to a key.
func (r *Repo) grant(ctx context.Context, to keyOwner, epochs []seal.Epoch) error {
	name, p, err := r.sealGrant(to, epochs)
	if err != nil {
		return err
	}
	err = r.b.Put(ctx, name, p)
	if err == nil {
		return nil
	}
	got, gerr := r.b.Get(context.WithoutCancel(ctx), name, 0, -1)
	switch {
	case gerr == nil && bytes.Equal(got, p):
		return nil // the answer was lost, the grant was not
	case !errors.Is(err, fs.ErrExist) || gerr != nil:
		return err
	}
	if _, gerr := r.grantIn(name, got); gerr != nil {
		return fmt.Errorf("%w; it is in the way of what that key is to be given: remove it", gerr)
	}
	return fmt.Errorf("%s: %w", name, errOutrun)
}

// EpochUse tells what is still sealed for a key epoch.
type EpochUse struct {
	Epoch   uint32
	Newest  bool     // what is new is sealed for it
	Packs   PackSums // stored packs
	Records int      // snapshots and marks, which are never sealed anew
}

// EpochUses returns what is sealed for each epoch that is published or used,
// oldest first. The index must be in step (see Sync); packs that it does not know
// are not counted. A record that is damaged is passed over, and named in the
// error that comes beside the result.
func (r *Repo) EpochUses(ctx context.Context) ([]EpochUse, error) {
	uses := map[uint32]*EpochUse{}
	of := func(n uint32) *EpochUse {
		if uses[n] == nil {
			uses[n] = &EpochUse{Epoch: n, Newest: n == r.k.Newest()}
		}
		return uses[n]
	}
	for _, e := range r.k.Ring().Epochs {
		if e.N <= r.k.Newest() {
			of(e.N)
		}
	}
	packs, err := r.listPacks(ctx)
	if err != nil {
		return nil, err
	}
	for name, info := range packs {
		known, ok, err := r.ix.Pack(name)
		if err != nil {
			return nil, err
		}
		if ok {
			of(known.Epoch).Packs.add(info.Size)
		}
	}
	var damaged error
	for _, prefix := range []string{"snapshots/", "marks/"} {
		for info, err := range r.b.List(ctx, prefix) {
			if err != nil {
				return nil, err
			}
			n, err := r.epochOf(ctx, info.Name)
			if err != nil {
				damaged = errors.Join(damaged, err)
			} else if n > 0 {
				of(n).Records++
			}
		}
	}
	var list []EpochUse
	for _, u := range uses {
		list = append(list, *u)
	}
	slices.SortFunc(list, func(a, b EpochUse) int { return int(int64(a.Epoch) - int64(b.Epoch)) })
	return list, damaged
}

// epochOf returns the epoch that a record is sealed for; 0 for none.
func (r *Repo) epochOf(ctx context.Context, name string) (uint32, error) {
	p, err := r.b.Get(ctx, name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // forgotten meanwhile
	}
	if err != nil {
		return 0, err
	}
	o, err := seal.Parse(p)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, formatError(err))
	}
	if o.Sealing != seal.ForEpoch {
		return 0, nil
	}
	return o.Epoch, nil
}

// RewriteEpochs prunes, and stores anew all that is needed of packs that are
// sealed for older epochs: when nothing is left waiting, the newest epoch's
// private key is the only one that opens contents. Records are not sealed anew:
// with the older keys who has them reads names, totals and notes of a snapshot
// until it is forgotten. Of opt, Rewrite and MaxRepack are set. Only the owner
// may.
func (r *Repo) RewriteEpochs(ctx context.Context, opt PruneOptions) (PruneResult, error) {
	cfg, err := r.renewedConfig(ctx)
	if err == nil {
		err = r.wholeRing("storing data anew", cfg)
	}
	if err != nil {
		return PruneResult{}, err
	}
	newest := r.k.Newest()
	opt.Rewrite = func(info chunkstore.PackInfo) bool { return info.Epoch != newest }
	opt.MaxRepack = -1
	return r.Prune(ctx, opt)
}
