package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// The depths of a verification. The values are part of the format.
const (
	DepthHash   = "hash"   // the closing hash fits: the bytes are those that were written
	DepthFrames = "frames" // and every frame opens
	DepthChunks = "chunks" // and every chunk is what its ID says
)

// depths lists them, the shallow first.
var depths = [3]string{DepthHash, DepthFrames, DepthChunks}

const (
	ledgerEntries = 50_000   // in one object at most
	ledgerObjects = 32       // beyond so many they are merged
	ledgerSpare   = 1000     // superseded entries that are not worth a merge
	maxLedger     = 32 << 20 // stored bytes of an object; 50,000 entries take 3 MB
	maxWhat       = 200      // bytes of LedgerEntry.What
)

// history is what the ledgers say of one pack: by depth, when it was last found
// whole, and when damaged.
type history struct {
	ok  [len(depths)]time.Time
	bad *[len(depths)]LedgerEntry // nil: never; a zero time: not at that depth
}

// depthOf returns the place of an entry in depths. A depth that a newer program
// made up proves as little as possible, and cannot be refuted by less than all.
func depthOf(e *LedgerEntry) int {
	if d := slices.Index(depths[:], e.Depth); d >= 0 {
		return d
	}
	if e.OK {
		return 0
	}
	return len(depths) - 1
}

func (h *history) add(e LedgerEntry) {
	d := depthOf(&e)
	if e.OK {
		if e.Time.After(h.ok[d]) {
			h.ok[d] = e.Time
		}
		return
	}
	if h.bad == nil {
		h.bad = new([len(depths)]LedgerEntry)
	}
	if e.Time.After(h.bad[d].Time) {
		h.bad[d] = e
	}
}

// entries appends those that count, the first most. Damage is refuted only by
// who looked later and as deep; and what was found whole before the last damage
// counts for nothing any more.
func (h *history) entries(name pack.Name, dst []LedgerEntry) []LedgerEntry {
	var since time.Time
	first := len(dst)
	if h.bad != nil {
		for d := range h.bad {
			b := &h.bad[d]
			refuted := slices.ContainsFunc(h.ok[d:], func(t time.Time) bool { return t.After(b.Time) })
			if !b.Time.IsZero() && !refuted {
				dst = append(dst, *b)
			}
			if b.Time.After(since) {
				since = b.Time
			}
		}
	}
	if len(dst) > first {
		slices.SortFunc(dst[first:], func(a, b LedgerEntry) int { return b.Time.Compare(a.Time) })
		return dst
	}
	for d, t := range slices.Backward(h.ok[:]) {
		if t.After(since) {
			dst = append(dst, LedgerEntry{Pack: name.String(), Time: t, Depth: depths[d], OK: true})
		}
	}
	return dst
}

// ledgers is what all ledgers say.
type ledgers struct {
	packs   map[pack.Name]*history
	objects []string // that were read
	entries int      // in them
}

// Verified returns for each pack what counts of all that was found by who
// verified it: that it is damaged, if nobody looked later and as deep and found
// it whole; otherwise the deepest proof since the last damage. Packs that were
// never verified, or not since a merge of the ledgers found them gone, are not
// in the map. Only what the owner signed counts; what does not prove itself is
// passed over. The error is of the backend.
func (r *Repo) Verified(ctx context.Context) (map[pack.Name]LedgerEntry, error) {
	l, err := r.readLedgers(ctx)
	if err != nil {
		return nil, err
	}
	verified := make(map[pack.Name]LedgerEntry, len(l.packs))
	var room []LedgerEntry
	for name, h := range l.packs {
		if room = h.entries(name, room[:0]); len(room) > 0 {
			verified[name] = room[0]
		}
	}
	return verified, nil
}

func (r *Repo) readLedgers(ctx context.Context) (*ledgers, error) {
	l := &ledgers{packs: map[pack.Name]*history{}}
	seen := map[string]struct{}{}
	for {
		gone, err := r.readMoreLedgers(ctx, l, seen)
		if err != nil || !gone {
			return l, err
		}
		// What was merged meanwhile is in a ledger that the listing may have
		// missed.
		if err := r.wait(ctx, r.lag()); err != nil {
			return nil, err
		}
	}
}

// readMoreLedgers reads the ledgers that were not seen yet, and reports whether
// one of them is gone.
func (r *Repo) readMoreLedgers(ctx context.Context, l *ledgers, seen map[string]struct{}) (gone bool, err error) {
	for info, err := range r.b.List(ctx, "ledger/") {
		if err != nil {
			return false, err
		}
		if _, ok := seen[info.Name]; ok {
			continue
		}
		seen[info.Name] = struct{}{}
		body, err := r.ledger(ctx, info)
		if errors.Is(err, fs.ErrNotExist) {
			gone = true
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			if !unproven(err) && !errors.Is(err, ErrFormat) {
				return false, err
			}
			r.opt.Logf("%v", err)
			continue
		}
		l.objects = append(l.objects, info.Name)
		l.entries += len(body.Entries)
		for i := range body.Entries {
			l.add(&body.Entries[i])
		}
	}
	return gone, nil
}

func (l *ledgers) add(e *LedgerEntry) {
	name, ok := parsePackName(e.Pack)
	if !ok || e.Time.IsZero() {
		return
	}
	h := l.packs[name]
	if h == nil {
		h = &history{}
		l.packs[name] = h
	}
	h.add(*e)
}

// ledger reads one ledger of the owner's. An entry from the future of the
// backend's clock gets the time at which it was put: a verifier's clock that was
// ahead must not make its word last for ever.
func (r *Repo) ledger(ctx context.Context, info backend.Info) (*Ledger, error) {
	if info.Size > maxLedger {
		return nil, fmt.Errorf("%s: %d bytes are too much for a ledger: %w", info.Name, info.Size, chunk.ErrCorrupt)
	}
	p, err := r.b.Get(ctx, info.Name, 0, -1)
	if err != nil {
		return nil, err
	}
	o, err := seal.Parse(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", info.Name, formatError(err))
	}
	// Before it is opened: nobody else's is worth unpacking.
	if o.Kind != seal.KindLedger || o.Sealing != seal.ForList || o.Writer != r.k.Owner() {
		return nil, fmt.Errorf("%s: not a ledger of the owner's: %w", info.Name, chunk.ErrCorrupt)
	}
	if err := r.k.Open(info.Name, o); err != nil {
		return nil, formatError(err)
	}
	l := &Ledger{}
	if err := decode(info.Name, o.Body, l); err != nil {
		return nil, err
	}
	if info.ModTime.Unix() > 0 {
		for i := range l.Entries {
			if e := &l.Entries[i]; e.Time.After(info.ModTime.Add(clockSlack)) {
				e.Time = info.ModTime
			}
		}
	}
	return l, nil
}

// addLedger stores what was found of packs. Only the owner's key can.
func (r *Repo) addLedger(ctx context.Context, entries []LedgerEntry) error {
	if err := r.ownerOnly("writing into the ledger what was verified"); err != nil {
		return err
	}
	for part := range slices.Chunk(entries, ledgerEntries) {
		id, err := r.newID()
		if err != nil {
			return err
		}
		if err := r.putJSON(ctx, "ledger/"+id.String(), seal.KindLedger, seal.ForList, &Ledger{V: 1, Time: r.opt.Now().UTC(), Entries: part}); err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
	}
	return nil
}

// mergeLedgers puts ledgers together if there are many, or if most of what they
// say was superseded or is of packs that are gone. Any number may do it at once,
// and be interrupted: the worst is that things are said twice.
func (r *Repo) mergeLedgers(ctx context.Context) error {
	if r.ownerOnly("") != nil {
		return nil
	}
	l, err := r.readLedgers(ctx)
	if err != nil || len(l.objects) < 2 {
		return err
	}
	due := func(kept int) bool {
		return len(l.objects) > ledgerObjects+kept/ledgerEntries || l.entries >= 2*kept+ledgerSpare
	}
	if !due(0) {
		return nil
	}
	kept, err := r.keptEntries(ctx, l)
	if err != nil || !due(len(kept)) {
		return err
	}
	// Packs are listed after the ledgers are read: one that a ledger names and
	// that is missing here is gone for good. Where listings lag, that takes as
	// long.
	if lag := r.lag(); lag > 0 {
		if err := r.wait(ctx, lag); err != nil {
			return err
		}
		if kept, err = r.keptEntries(ctx, l); err != nil {
			return err
		}
	}
	// The merged ones first, then away with those that were read, and no others.
	if err := r.addLedger(ctx, kept); err != nil {
		return err
	}
	for _, name := range l.objects {
		if _, err := r.remove(ctx, name); err != nil {
			return fmt.Errorf("remove the merged %s: %w", name, err)
		}
	}
	return nil
}

// keptEntries returns what still counts, of packs that are there.
func (r *Repo) keptEntries(ctx context.Context, l *ledgers) ([]LedgerEntry, error) {
	var kept []LedgerEntry
	for info, err := range r.b.List(ctx, "packs/") {
		if err != nil {
			return nil, err
		}
		if name, ok := pack.ParseObject(info.Name); ok && l.packs[name] != nil {
			kept = l.packs[name].entries(name, kept)
		}
	}
	slices.SortFunc(kept, func(a, b LedgerEntry) int {
		return cmp.Or(strings.Compare(a.Pack, b.Pack), a.Time.Compare(b.Time))
	})
	return kept, nil
}
