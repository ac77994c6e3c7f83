package chunkstore

import (
	"cmp"
	"slices"
)

// announce lets frames be fetched that will be wanted, as soon as there is room:
// neighbours with one request, whoever announced them. It returns at once.
func (f *fetcher) announce(places []place) {
	f.mu.Lock()
	for _, at := range places {
		if parts, whole := f.cover(at); whole || len(f.order) >= maxPending {
			for _, pc := range parts {
				if pc.wanted <= 0 {
					pc.wanted = at.n // it came with others
				}
			}
			continue
		}
		nb := f.near(at.pack)
		if i, found := nb.find(at); !found {
			nb.pending = slices.Insert(nb.pending, i, at)
			f.order = append(f.order, at)
		}
	}
	due := f.dispatch()
	f.mu.Unlock()
	f.start(due)
}

// find returns where a frame is, or would be, among those that are pending.
func (nb *nearby) find(at place) (int, bool) {
	return slices.BinarySearchFunc(nb.pending, at.off, func(p place, off int64) int { return cmp.Compare(p.off, off) })
}

// dispatch returns what of the announced is to be fetched now. The caller has mu.
func (f *fetcher) dispatch() (due []*piece) {
	for f.flying < lanes && len(f.order) > 0 {
		nb := f.near(f.order[0].pack)
		if i, found := nb.find(f.order[0]); found {
			pieces := f.launch(nb, i, true)
			if pieces == nil {
				break // no room, or not yet
			}
			due = append(due, pieces...)
		}
		f.order = f.order[1:]
	}
	return due
}

// launch makes pieces of a pending frame and of those beside it that are pending,
// too; none if there is no room, or if more may come. The caller has mu.
func (f *fetcher) launch(nb *nearby, i int, hope bool) []*piece {
	from, to := i, i+1
	off, end := nb.pending[i].off, nb.pending[i].off+nb.pending[i].n
	wanted := nb.pending[i].n + frameHead
	for grown := true; grown; {
		grown = false
		if to < len(nb.pending) {
			if p := nb.pending[to]; p.off-end <= maxGap && p.off+p.n-off <= maxAnnounced {
				end, wanted, to, grown = max(end, p.off+p.n), wanted+p.n+frameHead, to+1, true
			}
		}
		if from > 0 {
			if p := nb.pending[from-1]; off-p.off-p.n <= maxGap && end-p.off <= maxAnnounced {
				off, wanted, from, grown = p.off, wanted+p.n+frameHead, from-1, true
			}
		}
	}
	if hope && end-off < maxAnnounced/2 && f.flying >= smallLanes {
		return nil
	}
	at := nb.pending[i]
	if f.makeRoom(end-off, hope) < end-off {
		if hope {
			return nil
		}
		from, to, off, end, wanted = i, i+1, at.off, at.off+at.n, at.n+frameHead // somebody waits for it
	}
	nb.pending = slices.Delete(nb.pending, from, to)
	pieces := f.add(at, off, end, nil)
	for _, pc := range pieces {
		pc.announced = true
		if len(pieces) == 1 {
			pc.wanted = min(wanted, pc.wanted+frameHead)
		}
	}
	f.flying += len(pieces)
	return pieces
}
