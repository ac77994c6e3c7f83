package repo

import "math/bits"

// Across a network a call that was given up may be done later, when who made it
// has long repeated it and gone on. A Put of a name that is taken does nothing, so
// it matters from when the name is free: behind each removal a Put of what was
// removed may be under way, and then a Remove as well. Packs go under another name
// instead of being put again; the first one may come yet. Of records see
// writer.flight. Who gives up for good is like one that is slow, and is held up for
// ever behind that step.

// sort is what the name of an object begins with.
type sort int

const (
	aPack sort = iota
	aSegment
	aCondemned
	anIntent
	aForgotten
	sorts
)

// underWay are calls that nobody waits for any more.
type underWay struct {
	left        uint8 // how many there may yet be
	put, remove [sorts]uint8
}

// removed adds the state in which things of one sort were removed, and those in
// which calls for the same names are under way.
func (sp *spec) removed(s world, of sort, which uint8, add func(world, string, ...any), format string, args ...any) {
	add(s, format, args...)
	if which == 0 {
		return
	}
	if s.late.put[of]&which == 0 {
		if s.late.left == 0 {
			return
		}
		s.late.left--
		s.late.put[of] |= which
		if of == aPack {
			for i := range s.p { // it has been under way since before they looked
				s.p[i].stay |= s.unsettled(sp, &s.p[i])
			}
		}
		add(s, format+", a Put of it is under way", args...)
	}
	if of == aPack {
		t := s
		t.dropped |= which
		add(t, format+", a Put of it is under way, and the indexes know that it is gone", args...)
	}
	if s.late.left > 0 {
		s.late.left--
		s.late.remove[of] |= which
		add(s, format+", a Put and a Remove of it are under way", args...)
	}
}

// arrivals appends what calls lead to that were under way.
func (sp *spec) arrivals(s *world, dst []next) []next {
	for of := range sorts {
		for m := s.late.put[of]; m != 0; m &= m - 1 {
			t := *s
			t.late.put[of] &^= m & -m
			t.appear(sp, of, m&-m)
			dst = append(dst, next{t, sp.label("network", int(of), "something is put late: %08b", []any{m & -m})})
		}
		for m := s.late.remove[of]; m != 0; m &= m - 1 {
			t := *s
			t.late.remove[of] &^= m & -m
			t.vanish(of, m&-m)
			t.clean(sp, sp.writerSteps())
			dst = append(dst, next{t, sp.label("network", int(of), "something is removed late: %08b", []any{m & -m})})
		}
	}
	return dst
}

func (s *world) appear(sp *spec, of sort, which uint8) {
	switch of {
	case aPack:
		sp.come(&s.fresh.packs, which&^s.exists)
		s.exists |= which
	case aSegment:
		s.segment |= which
	case aCondemned:
		if c := &s.cond[bits.TrailingZeros8(which)]; !c.there {
			c.there, c.waits, c.wait = true, false, 0
			sp.come(&s.fresh.conds, which)
		}
	case anIntent:
		sp.come(&s.fresh.intents, which&^s.intent)
		s.intent |= which
	case aForgotten:
		s.forgotten |= which
	}
}

func (s *world) vanish(of sort, which uint8) {
	switch of {
	case aPack:
		s.exists &^= which
		s.fresh.packs &^= which
	case aSegment:
		s.segment &^= which
	case aCondemned:
		s.cond[bits.TrailingZeros8(which)].there = false
		s.fresh.conds &^= which
	case anIntent:
		s.withdraw(which)
	case aForgotten:
		s.forgotten &^= which
	}
}

// unsettled returns the condemned records of which a pack may come back.
func (s *world) unsettled(sp *spec, p *prunerAt) (recs uint8) {
	for r, c := range s.cond {
		if p.recs>>r&1 != 0 && !sp.mayEndCondemned(c.packs&s.late.put[aPack] == 0) {
			recs |= 1 << r
		}
	}
	return recs
}

// recordSettled reports whether no Put of a record is under way.
func (s *world) recordSettled(r int) bool { return r >= maxWriters || !s.w[r].flight }
