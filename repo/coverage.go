package repo

import (
	"context"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// Coverage tells how much of what is stored was proven, chunk by chunk, and how
// long ago. Every pack is in exactly one group.
type Coverage struct {
	Packs, Bytes uint64
	Groups       []CoverageGroup
	// Oldest is when the pack was proven that waits for the longest time; zero
	// if none was ever proven.
	Oldest time.Time
}

// CoverageGroup is the packs whose last proof is of one age: "1d" up to a day,
// then up to "7d", "30d", "90d", "older"; "never" if there is no proof of every
// chunk, or one from the future; "damaged" if they were found so.
type CoverageGroup struct {
	Name         string
	Packs, Bytes uint64
}

const oneDay = 24 * time.Hour

var coverageAges = []struct {
	name string
	age  time.Duration
}{{"1d", oneDay}, {"7d", 7 * oneDay}, {"30d", 30 * oneDay}, {"90d", 90 * oneDay}, {"older", 1<<63 - 1}, {"never", 0}, {"damaged", 0}}

// Coverage lists the packs and reads the ledgers.
func (r *Repo) Coverage(ctx context.Context) (*Coverage, error) {
	verified, err := r.Verified(ctx)
	if err != nil {
		return nil, err
	}
	packs := map[pack.Name]int64{}
	for info, err := range r.b.List(ctx, "packs/") {
		if err != nil {
			return nil, err
		}
		if name, ok := pack.ParseObject(info.Name); ok {
			packs[name] = info.Size
		}
	}
	return coverage(packs, verified, r.opt.Now()), nil
}

func coverage(packs map[pack.Name]int64, verified map[pack.Name]LedgerEntry, now time.Time) *Coverage {
	c := &Coverage{}
	for _, a := range coverageAges {
		c.Groups = append(c.Groups, CoverageGroup{Name: a.name})
	}
	for name, size := range packs {
		e, known := verified[name]
		g := len(c.Groups) - 2
		if known && !e.OK {
			g++
		} else if age, ok := e.provenFor(now); ok {
			for g = 0; age > coverageAges[g].age; g++ {
			}
			if c.Oldest.IsZero() || e.Time.Before(c.Oldest) {
				c.Oldest = e.Time
			}
		}
		c.Packs++
		c.Bytes += uint64(size)
		c.Groups[g].Packs++
		c.Groups[g].Bytes += uint64(size)
	}
	return c
}

// provenFor returns how long ago every chunk of the pack was proven. What claims
// to be from the future proves nothing: its pack would never be due again.
func (e *LedgerEntry) provenFor(now time.Time) (time.Duration, bool) {
	if !e.OK || e.Depth != DepthChunks || e.Time.After(now.Add(clockSlack)) {
		return 0, false
	}
	return max(0, now.Sub(e.Time)), true
}
