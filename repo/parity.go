package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// ParityOptions say which parity to add.
type ParityOptions struct {
	Percent float64 // of each pack; 0: as the config says
	DryRun  bool    // only count

	// Renew reads the parity that is there too, and replaces what is damaged.
	// Only the owner may.
	Renew bool

	Progress *ParityProgress // may be nil
}

// ParityProgress counts while parity is added; it may be read at any time.
type ParityProgress struct{ Packs, PacksTotal, Bytes, BytesTotal atomic.Uint64 }

// ParityResult tells what was added; of a dry run, what would be.
type ParityResult struct {
	Packs, Bytes uint64              // packs that got parity, and its bytes
	Renewed      uint64              // of the packs those whose parity was damaged
	Locked       uint64              // packs whose parity is damaged, and locked: it stays as it is
	Had          uint64              // packs that had parity and keep it
	Damaged      map[pack.Name]error // packs that got none, for they are damaged themselves
}

// AddParity makes parity for every pack that has none, such as those that were
// written before it was switched on, or copied. It reads those packs whole, and
// may be interrupted at any point: the next run goes on. A pack that does not
// prove itself gets none and is in the result. It may run beside anything.
func (r *Repo) AddParity(ctx context.Context, opt ParityOptions) (ParityResult, error) {
	a := &parityAdder{r: r, opt: opt, res: ParityResult{Damaged: map[pack.Name]error{}}}
	if a.opt.Percent == 0 {
		a.opt.Percent = r.cfg.ParityPercent()
	}
	if a.opt.Progress == nil {
		a.opt.Progress = &ParityProgress{}
	}
	if a.opt.Percent == 0 {
		return a.res, nil
	}
	if opt.Renew {
		if err := r.ownerOnly("replacing damaged parity"); err != nil {
			return a.res, err
		}
	}
	return a.res, a.run(ctx)
}

// SetParity makes percent the parity of packs that are written from now on; 0
// for none. Only the owner may, before anything else uses r. Programs that have the repository open go on as
// they began; AddParity, which prune calls, makes up for what they wrote.
func (r *Repo) SetParity(ctx context.Context, percent float64) error {
	if err := r.ownerOnly("changing the parity"); err != nil {
		return err
	}
	err := r.changeConfig(ctx, func(c *Config) error {
		c.Parity = formatParity(percent)
		return c.check()
	})
	if err == nil {
		r.cfg.Parity = formatParity(percent)
	}
	return err
}

type parityAdder struct {
	r   *Repo
	opt ParityOptions
	res ParityResult
}

func (a *parityAdder) run(ctx context.Context) error {
	see := &view{r: a.r}
	for _, st := range []step{doListCondemned, doListPacks} {
		if err := see.do(ctx, st); err != nil {
			return err
		}
	}
	has, err := a.r.names(ctx, "parity/")
	if err != nil {
		return err
	}
	packs, lacks := see.usable(), map[pack.Name]bool{}
	for _, name := range sortedNames(packs) {
		info, ok := has[name.String()]
		if ok && a.opt.Renew {
			if ok, err = a.healthy(ctx, name, info.Size, packs[name]); err != nil {
				return err
			}
			lacks[name] = !ok
		} else if !ok {
			lacks[name] = false
		}
		if ok {
			a.res.Had++
			delete(lacks, name)
			continue
		}
		a.opt.Progress.BytesTotal.Add(uint64(packs[name]))
	}
	a.opt.Progress.PacksTotal.Store(uint64(len(lacks)))
	for _, name := range sortedNames(lacks) {
		if err := a.pack(ctx, name, packs[name], lacks[name]); err != nil {
			return err
		}
		a.opt.Progress.Packs.Add(1)
		a.opt.Progress.Bytes.Add(uint64(packs[name]))
	}
	return nil
}

// healthy reports whether a parity object is undamaged and of a pack of that
// size.
func (a *parityAdder) healthy(ctx context.Context, name pack.Name, size, packSize int64) (bool, error) {
	if size > pack.MaxSize {
		return false, nil
	}
	p, err := a.r.b.Get(ctx, parity.Object(name), 0, size)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	x, err := parity.Open(name, p)
	if errors.Is(err, seal.ErrVersion) {
		return true, nil // a newer program knows better
	}
	return err == nil && x.Whole() && x.Size() == packSize, nil
}

// pack makes the parity of one pack, in place of what is there if that is
// damaged.
func (a *parityAdder) pack(ctx context.Context, name pack.Name, size int64, renew bool) error {
	n, err := parity.Size(size, a.opt.Percent)
	if err != nil || size > pack.MaxSize {
		a.res.Damaged[name] = fmt.Errorf("%s: %d bytes are no pack: %w", name.Object(), size, chunk.ErrCorrupt)
		return nil
	}
	if !a.opt.DryRun {
		p, err := a.r.b.Get(ctx, name.Object(), 0, size)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err == nil {
			err = pack.Check(p)
		} else if !errors.Is(err, syscall.EIO) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if err != nil {
			a.res.Damaged[name] = fmt.Errorf("%s: %w", name.Object(), err)
			return nil
		}
		if renew {
			until, err := a.r.remove(ctx, parity.Object(name))
			if err != nil {
				return err
			}
			if !until.IsZero() {
				a.res.Locked++
				return nil
			}
		}
		if err := a.r.store.PutParity(ctx, name, p, a.opt.Percent); err != nil {
			return err
		}
	}
	a.res.Packs++
	a.res.Bytes += uint64(n)
	if renew {
		a.res.Renewed++
	}
	return nil
}

// sweepParity removes parity whose pack is gone, as of who was interrupted, or
// who added parity to a pack while prune removed it. A pack is there before its
// parity, and never comes back: so parity is listed first.
func (r *Repo) sweepParity(ctx context.Context) (removed int, err error) {
	objects, err := r.names(ctx, "parity/")
	if err != nil || len(objects) == 0 {
		return 0, err
	}
	if err := r.wait(ctx, r.lag()); err != nil {
		return 0, err
	}
	packs, err := r.listPacks(ctx)
	if err != nil {
		return 0, err
	}
	for last, info := range objects {
		name, ok := parity.ParseObject("parity/" + last)
		if _, there := packs[name]; !ok || there {
			continue
		}
		if until, err := r.removeInfo(ctx, info); err != nil {
			return removed, err
		} else if until.IsZero() {
			removed++
		}
	}
	return removed, nil
}
