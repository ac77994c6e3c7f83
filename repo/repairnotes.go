package repo

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// noteKinds are what is said about other objects. What of it cannot be read
// counts for nothing already, and nothing else brings it back.
var noteKinds = []string{"forgotten/", "ledger/", "marks/"}

// notes removes objects that only say something of others, and that do not prove
// themselves: a damaged mark may have been a pin, a damaged ledger says no longer
// which packs were verified, a damaged forgotten record hides nothing any more.
// Each is told. What a newer program wrote stays, and what is sealed for a key epoch
// that this key was not given: others can read it.
func (p *repairer) notes(ctx context.Context) error {
	for _, prefix := range noteKinds {
		infos, err := p.r.names(ctx, prefix)
		if err != nil {
			return err
		}
		var names []string
		for name := range infos {
			names = append(names, prefix+name)
		}
		slices.Sort(names)
		for _, name := range names {
			_, err := p.r.ownersObject(ctx, name, kinds[prefix[:len(prefix)-1]])
			switch {
			case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrFormat), errors.Is(err, seal.ErrNoKey):
				continue
			case !errors.Is(err, chunk.ErrCorrupt):
				return err
			}
			if !p.opt.DryRun {
				if until, err := p.r.remove(ctx, name); err != nil {
					return err
				} else if !until.IsZero() {
					p.report(RepairStep{Do: RepairDamaged, Object: name, Err: &backend.LockedError{Name: name, Until: until}})
					continue
				}
			}
			p.res.Notes++
			p.report(RepairStep{Do: RepairDropped, Object: name, Err: err})
		}
	}
	return ctx.Err()
}
