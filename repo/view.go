package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// view is what a writer or pruner has seen of the packs. The two listings are
// made in the order that the protocols say.
type view struct {
	r         *Repo
	discard   bool                 // pass over condemned records that are damaged
	condemned map[pack.Name]string // by which record
	packs     map[pack.Name]backend.Info
	latest    time.Time // when the last of them was put: by the backend's clock it is that late at least
}

// do makes one listing, or waits for it to be up to date.
func (v *view) do(ctx context.Context, st step) error {
	switch st {
	case doCatchUp:
		return v.r.wait(ctx, v.r.lag())
	case doListCondemned:
		records, err := v.r.condemnedRecords(ctx, v.discard)
		if err != nil {
			return err
		}
		v.condemned = map[pack.Name]string{}
		for name, rec := range records {
			v.seen(rec.info)
			for _, p := range rec.packs {
				v.condemned[p] = name
			}
		}
		return nil
	case doListPacks:
		var err error
		v.packs, err = v.r.listPacks(ctx)
		for _, info := range v.packs {
			v.seen(info)
		}
		return err
	}
	return fmt.Errorf("%q is no listing", st) // never happens
}

func (v *view) seen(info backend.Info) {
	if info.ModTime.After(v.latest) {
		v.latest = info.ModTime
	}
}

// usable returns the sizes of the packs that may hold chunks.
func (v *view) usable() map[pack.Name]int64 {
	usable := map[pack.Name]int64{}
	for name, info := range v.packs {
		if _, condemned := v.condemned[name]; mayHold(true, condemned) {
			usable[name] = info.Size
		}
	}
	return usable
}

// listPacks lists the packs. Where they are locked their times are those of what
// was stored first: who stores them once more must not make them seem young, and
// locked.
func (r *Repo) listPacks(ctx context.Context) (map[pack.Name]backend.Info, error) {
	packs := map[pack.Name]backend.Info{}
	if r.vault != nil {
		for v, err := range r.vault.ListVersions(ctx, "packs/", "") {
			if err != nil {
				return nil, err
			}
			n, ok := pack.ParseObject(v.Name)
			info, shown := packs[n]
			switch {
			case !ok || v.Deleted:
			case v.Latest:
				packs[n] = v.Info
			case shown:
				info.ModTime = v.ModTime
				packs[n] = info
			}
		}
		return packs, nil
	}
	for info, err := range r.b.List(ctx, "packs/") {
		if err != nil {
			return nil, err
		}
		if n, ok := pack.ParseObject(info.Name); ok {
			packs[n] = info
		}
	}
	return packs, nil
}

// condemnedRecord is condemned/<id> and the newest of its condemned/<id>.<n>.
type condemnedRecord struct {
	there bool // condemned/<id> was seen, and not only what it waits for
	info  backend.Info
	packs []pack.Name
	waits bool // the intents to wait for are known
	wait  []ID
	n     int      // of the newest part
	parts []string // the names of all parts
}

// condemnedRecords reads condemned/. Only what the owner signed counts. One that
// is damaged is an error: nobody knows what it condemns, so nothing may be leaned
// on.
func (r *Repo) condemnedRecords(ctx context.Context, discard bool) (map[string]*condemnedRecord, error) {
	records := map[string]*condemnedRecord{}
	for info, err := range r.b.List(ctx, "condemned/") {
		if err != nil {
			return nil, err
		}
		o, err := r.ownersObject(ctx, info.Name, seal.KindCondemned)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // its packs are all gone
		case errors.Is(err, errNotOwners):
			r.opt.Logf("%v: passed over", err)
			continue
		}
		var c Condemned
		if err == nil {
			err = decode(info.Name, o.Body, &c)
		}
		if errors.Is(err, chunk.ErrCorrupt) && discard {
			r.opt.Logf("passed over: %v", err)
			continue
		}
		if errors.Is(err, ErrFormat) {
			return nil, fmt.Errorf("%w; nobody knows which packs it condemns: use the newer program, or remove that object if nobody has one", err)
		}
		if err != nil {
			return nil, fmt.Errorf("%w; nobody knows which packs it condemns: when no prune is running anywhere, `cutbank prune --discard-damaged` removes it", err)
		}
		base, num, part := strings.Cut(strings.TrimPrefix(info.Name, "condemned/"), ".")
		if c.ID.String() != base {
			r.opt.Logf("%s: not the owner's word: passed over", info.Name)
			continue
		}
		rec := records[base]
		if rec == nil {
			rec = &condemnedRecord{}
			records[base] = rec
		}
		rec.add(info, &c, num, part)
	}
	// A listing may miss a record that is put meanwhile and show what it waits
	// for. Who took it for one that names no packs would end it.
	maps.DeleteFunc(records, func(_ string, rec *condemnedRecord) bool { return !rec.there })
	return records, nil
}

func (rec *condemnedRecord) add(info backend.Info, c *Condemned, num string, part bool) {
	if !part {
		rec.there, rec.info = true, info
		for _, p := range c.Packs {
			if n, ok := parsePackName(p); ok {
				rec.packs = append(rec.packs, n)
			}
		}
		return
	}
	rec.parts = append(rec.parts, info.Name)
	n := 0
	if _, err := fmt.Sscanf(num, "%d", &n); err == nil && n > rec.n {
		rec.n, rec.waits, rec.wait = n, true, c.Wait
	}
}

// parsePackName reads a pack's name as Name.String writes it.
func parsePackName(s string) (pack.Name, bool) {
	if len(s) < 2 {
		return pack.Name{}, false
	}
	return pack.ParseObject("packs/" + s[:2] + "/" + s)
}
