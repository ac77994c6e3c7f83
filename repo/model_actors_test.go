package repo

import (
	"fmt"
	"math/bits"
	"slices"
)

// next is a state that may follow, and what happened, if the trace is wanted.
type next struct {
	s    world
	what string
}

// label tells what happened, but only to who will read it.
func (sp *spec) label(who string, i int, format string, args []any) string {
	if !sp.trace {
		return ""
	}
	return fmt.Sprintf("%s %d: ", who, i) + fmt.Sprintf(format, args...)
}

// successors appends all states that one step of any actor leads to.
func (sp *spec) successors(c setup, s *world, dst []next) []next {
	for i := range s.w {
		dst = sp.arrive(s, i, sp.writer(c, s, i, dst))
	}
	for i := range s.p {
		dst = sp.pruner(s, i, dst)
	}
	for i := range s.m {
		dst = sp.merger(s, i, dst)
	}
	return sp.arrivals(s, sp.forgetter(s, dst))
}

func (sp *spec) writerSteps() []step {
	if sp.order == nil {
		sp.order = append(append(append([]step{}, sp.begin...), doStore), sp.end...)
	}
	return sp.order
}

// clean forgets what nobody will ask for again, so that equal states are equal.
func (s *world) clean(sp *spec, steps []step) {
	s.dropped &= s.exists | s.late.put[aPack]
	for i := range s.w {
		w := &s.w[i]
		if w.stopped || !slices.Contains(steps[w.pc:], doStore) {
			w.cond, w.usable, w.fresh, w.micro = 0, 0, 0, 0
		}
		if w.stopped {
			w.pc, w.doubt = 0, false
		}
	}
	for i := range s.p {
		p := &s.p[i]
		switch {
		case p.done:
			*p = prunerAt{done: true}
		case !slices.Contains(sp.prune[p.pc:], doCopyOut):
			p.live, p.cond, p.packs, p.own = 0, 0, 0, 0
			if int(p.pc) < len(sp.prune) {
				p.snaps = 0
			}
		}
	}
	for i := range s.cond {
		if c := &s.cond[i]; !c.there && s.late.put[aCondemned]>>i&1 == 0 && s.p[0].recs>>i&1 == 0 && s.p[1].recs>>i&1 == 0 && c.packs != 0 {
			*c = condRecord{used: true}
		}
	}
	if s.f.done {
		s.f = forgetter{done: true}
	}
}

func (sp *spec) writer(c setup, from *world, i int, dst []next) []next {
	if from.w[i].stopped {
		return dst
	}
	steps := sp.writerSteps()
	me := uint8(1) << i
	add := func(s world, format string, args ...any) {
		s.clean(sp, steps)
		dst = append(dst, next{s, sp.label("writer", i, format, args)})
	}
	s := *from
	w := &s.w[i]
	advance := func() { w.pc++; w.micro = 0 }
	switch st := steps[w.pc]; st {
	case doAnnounce:
		s.intent |= me
		sp.come(&s.fresh.intents, me)
		advance()
		add(s, "%s", st)
	case doCatchUp:
		if s.catchUp(&w.await) {
			advance()
		}
		add(s, "%s", st)
	case doListCondemned:
		advance()
		s.list(s.conds(), s.fresh.conds, 0, func(s world, recs uint8) {
			s.w[i].cond = s.packsOf(recs)
			add(s, "%s: %08b", st, s.w[i].cond)
		})
	case doListPacks:
		advance()
		s.list(s.exists, s.fresh.packs, s.fresh.ghosts, func(s world, packs uint8) {
			w := &s.w[i]
			for p := uint8(1); p != 0; p <<= 1 {
				if sp.mayHold(packs&p != 0, w.cond&p != 0) {
					w.usable |= p
				}
			}
			add(s, "%s: %08b", st, packs)
		})
	case doStore:
		sp.store(&s, i, add, advance)
	case doCommit:
		sp.commit(c, from, i, add)
	case doWithdraw:
		s.withdraw(me)
		advance()
		if int(w.pc) == len(steps) {
			w.stopped = true
		}
		sp.removed(s, anIntent, me, add, "%s", st)
	}
	return dst
}

// condemned returns the packs that somebody has condemned.
func (s *world) condemned() (packs uint8) { return s.packsOf(s.conds()) }

// withdraw removes an intent. That a listing may still show it does no harm: for
// its writer, or for its tombstone, one looks where its record would be.
func (s *world) withdraw(writer uint8) {
	s.intent &^= writer
	s.fresh.intents &^= writer
}

// store adopts unlisted packs, and stores in one pack what no usable pack holds.
func (sp *spec) store(s *world, i int, add func(world, string, ...any), advance func()) {
	w := &s.w[i]
	if !slices.Contains(sp.begin, doListPacks) && w.micro == 0 {
		w.usable = s.listed() &^ w.cond // what the index knows
	}
	switch w.micro {
	case 0:
		if orphans := w.usable &^ s.listed(); !sp.noAdopt {
			s.adopted[i] = orphans & s.exists
			w.usable &^= orphans &^ s.exists
		}
		w.micro = 1
		add(*s, "adopt")
	case 1:
		missing := needs[i]
		for p := uint8(1); p != 0; p <<= 1 {
			if w.usable&p != 0 {
				missing &^= s.content[bits.TrailingZeros8(p)]
			}
		}
		if missing == 0 {
			advance()
			add(*s, "lean on %08b", w.usable)
			return
		}
		name, ok := s.newPack(0)
		if !ok {
			return
		}
		w.fresh = name
		sp.come(&s.fresh.packs, name)
		if sp.segmentFirst {
			s.used |= name
			s.content[bits.TrailingZeros8(name)] = missing
			s.segment |= name
		} else {
			s.put(name, missing)
		}
		if t := *s; s.late.left > 0 {
			t.late.left--
			t.late.put[aPack] |= name
			t.exists &^= name
			add(t, "a pack does not arrive, %08b", name)
		}
		w.micro = 2
		add(*s, "first of pack and segment, %08b", name)
	case 2:
		s.exists |= w.fresh
		s.segment |= w.fresh
		advance()
		add(*s, "second of pack and segment")
	}
}

// commit puts the record. The answer may be lost, whether the Put succeeded or
// not; the writer then looks, and puts again as long as nobody knows.
func (sp *spec) commit(c setup, from *world, i int, add func(world, string, ...any)) {
	steps := sp.writerSteps()
	settle := func(s world, there, own, sure bool, what string) {
		w := &s.w[i]
		switch sp.settle(there, own, sure) {
		case success:
			w.told, w.doubt = true, false
			w.pc++
		case lost, failed:
			w.doubt = false
			w.stopped = true
			s.withdraw(1 << i)
			sp.removed(s, anIntent, 1<<i, add, "%s", what)
			return
		case uncertain:
			w.doubt = true
		}
		if int(w.pc) == len(steps) {
			w.stopped = true
		}
		add(s, "%s", what)
	}
	state := recordState(from.record[i])
	if from.w[i].doubt {
		settle(*from, state != noRecord, state == aRecord, false, "look at the record")
	}
	s := *from
	free := state == noRecord || sp.overwrite
	if c.retry && !from.w[i].doubt {
		t := s
		t.w[i].doubt, t.w[i].flight = true, true
		add(t, "put the record, which is under way for long")
	}
	if free {
		s.record[i] = uint8(aRecord)
		sp.come(&s.fresh.records, 1<<i)
		s.w[i].committedAt = true
	}
	if c.retry {
		t := s
		t.w[i].doubt = true
		add(t, "put the record, the answer is lost")
	}
	if free {
		settle(s, true, true, false, "put the record")
	} else {
		settle(s, true, state == aRecord, false, "put the record, conflict")
	}
}

// arrive lets a Put that was under way arrive, whatever became of its writer.
func (sp *spec) arrive(s *world, i int, dst []next) []next {
	if !s.w[i].flight {
		return dst
	}
	t := *s
	t.w[i].flight = false
	if recordState(t.record[i]) == noRecord {
		t.record[i] = uint8(aRecord)
		sp.come(&t.fresh.records, 1<<i)
		t.w[i].committedAt = true
	}
	return append(dst, next{t, "a record that was under way arrives"})
}

const (
	doReadSegments   step = "read the segments"
	doPutMerged      step = "put the merged segment"
	doRemoveSegments step = "remove what was read"
)

// mergeOrder is that of index.DB.Merge and Compact, with doListPacks in it.
var mergeOrder = []step{doReadSegments, doCatchUp, doListPacks, doPutMerged, doRemoveSegments}

// merger puts all segments that are there together, once.
func (sp *spec) merger(from *world, i int, dst []next) []next {
	if from.m[i].done {
		return dst
	}
	s := *from
	m := &s.m[i]
	if int(m.pc) == len(sp.merge) {
		s.m[i] = merger{done: true}
		return append(dst, next{s, sp.label("merger", i, "done", nil)})
	}
	st := sp.merge[m.pc]
	m.pc++
	switch st {
	case doReadSegments:
		m.segment, m.merged, m.lists = s.segment, s.mergedThere, s.listed()
		for w, a := range s.adopted {
			if a != 0 {
				m.adopted |= 1 << w
			}
		}
	case doCatchUp:
		if !s.catchUp(&m.await) {
			m.pc--
		}
	case doListPacks:
		s.list(s.exists, s.fresh.packs, s.fresh.ghosts, func(s world, packs uint8) {
			s.m[i].packs = packs
			dst = append(dst, next{s, sp.label("merger", i, "%s: %08b", []any{st, packs})})
		})
		return dst
	case doPutMerged:
		if sp.mergeLate {
			m.segment, m.merged = s.segment, s.mergedThere
		}
		s.merged[i] = m.lists & m.packs
		s.mergedThere |= 1 << i
	case doRemoveSegments:
		removed := s.segment & m.segment
		s.segment &^= removed
		s.mergedThere &^= m.merged
		for w := range s.adopted {
			if m.adopted>>w&1 != 0 {
				s.adopted[w] = 0
			}
		}
		sp.removed(s, aSegment, removed, func(s world, format string, args ...any) {
			dst = append(dst, next{s, sp.label("merger", i, format, args)})
		}, "%s", st)
		return dst
	}
	return append(dst, next{s, sp.label("merger", i, "%s: %08b", []any{st, m.lists & m.packs})})
}
