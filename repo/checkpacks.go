package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// maxReaders is how many packs are read at once at most.
const maxReaders = 16

// checkPacks compares the packs with the index and with the ledger, and reads
// those that were asked for.
func (c *checker) checkPacks(ctx context.Context) error {
	var err error
	if c.verified, err = c.r.Verified(ctx); err != nil {
		return err
	}
	var names []pack.Name
	for name := range c.packs {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b pack.Name) int { return bytes.Compare(a[:], b[:]) })
	c.res.Packs = uint64(len(names))
	for _, name := range names {
		info, ok, err := c.r.ix.Pack(name)
		switch {
		case err != nil:
			return err
		case !ok:
			c.res.Orphans++
		case info.Size != c.packs[name]:
			err := fmt.Errorf("%s has %d bytes, the index says %d: %w", name.Object(), c.packs[name], info.Size, chunk.ErrCorrupt)
			e, known := c.verified[name]
			if !e.Healed { // knownBad tells of those
				c.hurt(name, err)
			}
			if !known || e.OK {
				c.note(ctx, name, DepthHash, err)
			}
		}
	}
	q := c.choose(names)
	c.p.PacksTotal.Store(uint64(len(q.packs)))
	var wg sync.WaitGroup
	for range min(max(runtime.GOMAXPROCS(0), backend.Transfers(c.r.b)), maxReaders) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for name, ok := q.next(ctx); ok; name, ok = q.next(ctx) {
				c.readPack(ctx, name)
			}
		}()
	}
	wg.Wait()
	c.res.Left, c.res.LeftBytes = q.left()
	c.knownBad(ctx, names)
	c.mend(ctx)
	// What was read is remembered, also if the rest is not looked at any more.
	c.writeLedger(context.WithoutCancel(ctx), ctx.Err() == nil)
	if err := ctx.Err(); err != nil {
		return err
	}
	after, err := c.r.Verified(ctx)
	if err == nil {
		c.res.Coverage = coverage(c.packs, after, c.r.opt.Now())
	}
	return err
}

// queue hands out the packs to read, as long as the budget lasts.
type queue struct {
	c       *checker
	started time.Time

	mu    sync.Mutex
	packs []pack.Name
	given int
	bytes int64
}

// choose returns the packs to read: those that nobody has looked at yet first,
// then those that were looked at the longest time ago.
func (c *checker) choose(names []pack.Name) *queue {
	q := &queue{c: c, started: c.r.opt.Now()}
	rnd := rand.New(rand.NewPCG(c.opt.Seed, 1))
	for _, name := range names {
		e := c.verified[name]
		age, proven := e.provenFor(q.started)
		due := c.opt.MaxAge > 0 && (!proven || age > c.opt.MaxAge)
		if sampled := rnd.Float64() < c.opt.Sample; due || sampled || c.opt.ReadData {
			q.packs = append(q.packs, name)
			c.p.BytesTotal.Add(uint64(c.packs[name]))
		}
	}
	slices.SortStableFunc(q.packs, func(a, b pack.Name) int { return c.verified[a].Time.Compare(c.verified[b].Time) })
	return q
}

// next returns the next pack, false if there is none or the budget is used up.
func (q *queue) next(ctx context.Context) (name pack.Name, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.given == len(q.packs) || ctx.Err() != nil {
		return name, false
	}
	name = q.packs[q.given]
	size, opt := q.c.size(name), &q.c.opt
	if q.given > 0 { // one always is read, so that every run gets on
		late := opt.Budget > 0 && q.c.r.opt.Now().Sub(q.started) >= opt.Budget
		if late || opt.BudgetBytes > 0 && q.bytes+size > opt.BudgetBytes {
			return name, false
		}
	}
	q.given++
	q.bytes += size
	return name, true
}

func (q *queue) left() (packs, bytes uint64) {
	for _, name := range q.packs[q.given:] {
		packs++
		bytes += uint64(q.c.packs[name])
	}
	return packs, bytes
}

// readPack proves one pack and remembers what that showed.
func (c *checker) readPack(ctx context.Context, name pack.Name) {
	st := c.prove(ctx, name)
	if ctx.Err() != nil {
		return
	}
	if errors.Is(st.err, fs.ErrNotExist) {
		// Pruned meanwhile: what it held lies elsewhere, or is needed by nobody.
		c.mu.Lock()
		delete(c.packs, name)
		c.mu.Unlock()
		return
	}
	c.mu.Lock()
	c.looked[name] = struct{}{}
	c.res.Chunks += st.chunks
	c.res.Bytes += st.read
	c.res.Read++
	if st.err != nil {
		c.state[name] = &st
	}
	c.mu.Unlock()
	c.p.Packs.Add(1)
	if st.err != nil {
		c.hurt(name, st.err)
	}
	c.note(ctx, name, st.depth, st.err)
	c.checkParity(ctx, name)
}

// hurt reports a damaged pack, once.
func (c *checker) hurt(name pack.Name, err error) {
	c.mu.Lock()
	_, again := c.told[name]
	c.told[name] = struct{}{}
	_, hasParity := c.heal.parity[name]
	later := c.opt.Heal && hasParity
	if later && !again {
		c.heal.packs[name] = err // told when it is known whether it can be healed
	}
	c.mu.Unlock()
	if !again && !later {
		c.report(Damage{Object: name.Object(), Err: err})
	}
}

// knownBad reports packs that the ledger knows as damaged and that nobody looked
// at now.
func (c *checker) knownBad(ctx context.Context, names []pack.Name) {
	for _, name := range names {
		e, known := c.verified[name]
		_, looked := c.looked[name]
		if _, exists := c.packs[name]; !known || e.OK || looked || !exists {
			continue
		}
		what := strings.TrimSuffix(e.What, ": "+chunk.ErrCorrupt.Error())
		err := fmt.Errorf("was found damaged at %s and not looked at since, which --read-data does (%s): %w", e.Time.UTC().Format(time.RFC3339), what, chunk.ErrCorrupt)
		c.state[name] = &packState{err: err, lost: true}
		if e.Healed || c.spare(ctx, name) {
			c.report(Damage{Object: name.Object(), Err: fmt.Errorf("%w; all that it held lies in other packs too, and prune removes it", err), Healed: true})
			continue
		}
		c.hurt(name, err)
	}
}

// spare reports whether all that a damaged pack lists lies in others, too, that
// are not known as damaged: it was healed, or repaired.
func (c *checker) spare(ctx context.Context, name pack.Name) bool {
	t, err := pack.ReadTrailer(c.r.k, name, c.packs[name], func(off, n int64) ([]byte, error) { return c.r.b.Get(ctx, name.Object(), off, n) })
	if err != nil {
		return false
	}
	var room [4]pack.Location
	for i := range t.Frames {
		for _, ch := range t.Frames[i].Chunks {
			locs, err := c.r.ix.Lookup(ch.ID, room[:0])
			if err != nil || !slices.ContainsFunc(locs, func(l pack.Location) bool {
				_, exists := c.packs[l.Pack]
				e, known := c.verified[l.Pack]
				return exists && l.Pack != name && c.state[l.Pack] == nil && (!known || e.OK)
			}) {
				return false
			}
		}
	}
	return true
}

// ledgerEvery is how much of a long check an interruption may undo.
const ledgerEvery = 5 * time.Minute

// note keeps for the ledger what was found of a pack. What could not be read for
// another reason than damage says nothing.
func (c *checker) note(ctx context.Context, name pack.Name, depth string, err error) {
	rot := errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, syscall.EIO)
	if err != nil && !rot {
		return
	}
	e := LedgerEntry{Pack: name.String(), Time: c.r.opt.Now().UTC(), Depth: depth, OK: err == nil}
	if err != nil {
		what := strings.TrimPrefix(err.Error(), name.Object()+": ") // what the entry says anyway
		e.What = strings.ToValidUTF8(what[:min(len(what), maxWhat)], "")
	}
	// Clocks disagree: what is found now must not count as older than what was
	// found before.
	if last := c.verified[name].Time; !e.Time.After(last) {
		e.Time = last.Add(1)
	}
	c.mu.Lock()
	c.found = append(c.found, e)
	due := len(c.found) >= ledgerEntries || c.r.opt.Now().Sub(c.noted) >= ledgerEvery
	c.mu.Unlock()
	if due {
		c.writeLedger(ctx, false)
	}
}

// writeLedger stores what was found since the last time. A check goes on
// without: only the next one will know less.
func (c *checker) writeLedger(ctx context.Context, last bool) {
	c.mu.Lock()
	found := c.found
	c.found, c.noted = nil, c.r.opt.Now()
	c.mu.Unlock()
	if len(found) == 0 || c.r.readOnly != nil {
		return
	}
	err := c.r.addLedger(ctx, found)
	if err == nil && last {
		err = c.r.mergeLedgers(ctx)
	}
	if err != nil {
		c.mu.Lock()
		c.res.LedgerErr = err
		c.mu.Unlock()
	}
}
