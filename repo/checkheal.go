package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// repairs is what a check may mend, once it knows all that is damaged.
type repairs struct {
	parity map[pack.Name]backend.Info // that exists
	packs  map[pack.Name]error        // damaged packs that have parity
	spoilt map[pack.Name]error        // packs whose parity is damaged
	healed map[pack.Name]bool         // of packs
}

func newRepairs() repairs {
	return repairs{map[pack.Name]backend.Info{}, map[pack.Name]error{}, map[pack.Name]error{}, map[pack.Name]bool{}}
}

// checkParity proves the parity of a pack that was read.
func (c *checker) checkParity(ctx context.Context, name pack.Name) {
	c.mu.Lock()
	info, ok := c.heal.parity[name]
	c.mu.Unlock()
	if !ok {
		return
	}
	err := c.objectError(ctx, info, seal.KindParity)
	if err == nil || ctx.Err() != nil {
		return
	}
	if !c.opt.Heal || !errors.Is(err, chunk.ErrCorrupt) {
		c.report(Damage{Object: info.Name, Err: err})
		return
	}
	c.mu.Lock()
	c.heal.spoilt[name] = err
	c.mu.Unlock()
}

// mend heals damaged packs by their parity, then makes damaged parity anew of
// packs that are whole, and tells of both. All damage is known by now: no pack of
// it is leaned on.
func (c *checker) mend(ctx context.Context) {
	c.mendPacks(ctx)
	for _, name := range sortedNames(c.heal.spoilt) {
		d := Damage{Object: parity.Object(name), Err: c.heal.spoilt[name]}
		if c.heal.healed[name] {
			d.Healed, d.Err = true, fmt.Errorf("%w; its pack is healed, prune removes both", d.Err)
		} else if _, hurt := c.told[name]; !hurt {
			if err := c.renewParity(ctx, name); err == nil {
				d.Healed, d.Err = true, fmt.Errorf("%w; made anew of its pack", d.Err)
			} else {
				d.Err = fmt.Errorf("%w; not made anew: %w", d.Err, err)
			}
		}
		c.report(d)
	}
}

func (c *checker) mendPacks(ctx context.Context) {
	names := sortedNames(c.heal.packs)
	if len(names) == 0 {
		return
	}
	results, err := c.r.Heal(ctx, names)
	for i, name := range names {
		d := Damage{Object: name.Object(), Err: c.heal.packs[name]}
		switch {
		case err != nil:
			d.Err = fmt.Errorf("%w; not healed: %w", d.Err, err)
		case results[i].Err != nil:
			d.Err = fmt.Errorf("%w; not healed: %w", d.Err, results[i].Err)
		default:
			d.Healed, c.heal.healed[name] = true, true
			d.Err = healedError(d.Err, &results[i])
			c.noteHealed(name)
		}
		c.report(d)
	}
	if len(c.heal.healed) == 0 {
		return
	}
	// What was stored anew is there from now on. Without this listing it is found
	// one chunk at a time.
	packs, err := c.r.listPacks(ctx)
	if err != nil {
		c.r.opt.Logf("%v", err)
	}
	for name, info := range packs {
		if _, listed := c.packs[name]; !listed {
			c.packs[name] = info.Size
		}
	}
}

// healedError says what became of damage.
func healedError(err error, res *HealResult) error {
	if res.Stored == 0 {
		return fmt.Errorf("%w; all its %d chunks have another place by now, prune removes the pack", err, res.Chunks)
	}
	return fmt.Errorf("%w; healed by parity: %d of %d shards rebuilt, %d of %d chunks stored anew, prune removes the pack",
		err, res.Report.DataDamaged, res.Report.Data, res.Stored, res.Chunks)
}

// noteHealed lets the ledger say that nothing of a damaged pack is lost.
func (c *checker) noteHealed(name pack.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range slices.Backward(c.found) {
		if e := &c.found[i]; e.Pack == name.String() && !e.OK {
			e.Healed = true
			return
		}
	}
	e := c.verified[name]
	e.Pack, e.OK, e.Healed = name.String(), false, true
	if e.Depth == "" {
		e.Depth = DepthHash
	}
	// Later than what was found of it before, now or by others.
	if now := c.r.opt.Now().UTC(); now.After(e.Time) {
		e.Time = now
	}
	e.Time = e.Time.Add(1)
	c.found = append(c.found, e)
}

// renewParity makes the parity of a whole pack anew.
func (c *checker) renewParity(ctx context.Context, name pack.Name) error {
	if err := c.r.ownerOnly("replacing damaged parity"); err != nil {
		return err
	}
	a := &parityAdder{r: c.r, opt: ParityOptions{Percent: c.r.cfg.ParityPercent()}, res: ParityResult{Damaged: map[pack.Name]error{}}}
	if a.opt.Percent == 0 {
		return errors.New("the config asks for no parity")
	}
	if err := a.pack(ctx, name, c.size(name), true); err != nil {
		return err
	}
	return a.res.Damaged[name]
}
