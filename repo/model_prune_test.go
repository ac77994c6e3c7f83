package repo

import (
	"math/bits"
	"slices"
)

// pruner appends what one step of pruner i leads to. First it takes up the
// condemned records that are there and chooses packs; then it follows the order.
func (sp *spec) pruner(from *world, i int, dst []next) []next {
	if from.p[i].done {
		return dst
	}
	add := func(s world, format string, args ...any) {
		s.clean(sp, sp.writerSteps())
		dst = append(dst, next{s, sp.label("pruner", i, format, args)})
	}
	s := *from
	p := &s.p[i]
	if int(p.pc) == len(sp.prune) {
		sp.tidy(&s, i, add)
		return dst
	}
	switch st := sp.prune[p.pc]; st {
	case doCondemn:
		sp.condemn(from, i, add)
	case doListWriters:
		sp.listWriters(&s, i, add)
	case doResolve:
		sp.resolve(from, i, add)
	case doCatchUp:
		if s.catchUp(&p.await) {
			p.step()
		}
		add(s, "%s", st)
	case doListRecords:
		if p.micro == 0 {
			there := uint8(0)
			for r := range records {
				if s.record[r] != uint8(noRecord) {
					there |= 1 << r
				}
			}
			p.micro = 1
			s.list(there, s.fresh.records, 0, func(s world, seen uint8) {
				s.p[i].snaps = seen
				add(s, "list snapshots/: %03b", seen)
			})
			break
		}
		p.live = 0
		for r := range records {
			if p.snaps>>r&1 != 0 && sp.isLive(recordState(s.record[r]), s.forgotten>>r&1 != 0) {
				p.live |= needs[r]
			}
		}
		p.step()
		add(s, "list forgotten/ and mark %02b", p.live)
	case doListCondemned:
		p.step()
		s.list(s.conds(), s.fresh.conds, 0, func(s world, recs uint8) {
			s.p[i].cond = s.packsOf(recs)
			add(s, "%s: %08b", st, s.p[i].cond)
		})
	case doListPacks:
		p.step()
		s.list(s.exists, s.fresh.packs, s.fresh.ghosts, func(s world, packs uint8) {
			s.p[i].packs, s.p[i].stay = packs, s.unsettled(sp, &s.p[i])
			add(s, "%s: %08b", st, packs)
		})
	case doCopyOut:
		sp.copyOut(&s, i, add)
	case doRemovePacks:
		sp.removePack(&s, i, add)
	case doEndCondemned:
		sp.endCondemned(&s, i, add)
	}
	return dst
}

func (p *prunerAt) step() { p.pc++; p.micro = 0 }

// mine returns the packs that a pruner works on.
func (s *world) mine(p *prunerAt) (packs uint8) { return s.packsOf(p.recs &^ p.blind) }

// condemn takes up what is condemned, then condemns any one pack, all, or none.
func (sp *spec) condemn(from *world, i int, add func(world, string, ...any)) {
	s := *from
	p := &s.p[i]
	switch p.micro {
	case 0:
		p.micro = 1
		if sp.partsAlone {
			p.micro = 2
		}
		s.list(s.conds(), s.fresh.conds, 0, func(s world, recs uint8) {
			s.p[i].recs = recs
			add(s, "take up records %02b", recs)
		})
		return
	case 2:
		for r, c := range s.cond {
			if c.there && c.waits && p.recs>>r&1 == 0 {
				p.recs |= 1 << r
				p.blind |= 1 << r
			}
		}
		p.micro = 1
		add(s, "take up what other records wait for: %02b", p.blind)
		return
	}
	if p.recs != 0 {
		t := s
		t.p[i].step()
		add(t, "condemn nothing more")
	}
	free := s.exists &^ s.condemned()
	if s.cond[i].there || s.cond[i].used {
		return
	}
	choose := func(packs uint8) {
		t := s
		t.cond[i] = condRecord{there: true, packs: packs, used: true}
		sp.come(&t.fresh.conds, 1<<i)
		t.p[i].recs |= 1 << i
		t.p[i].step()
		add(t, "condemn %08b", packs)
	}
	for m := free; m != 0; m &= m - 1 {
		choose(m & -m)
	}
	if bits.OnesCount8(free) > 1 {
		choose(free)
	}
}

// listWriters lists the intents, then stores them beside each record that has
// none stored.
func (sp *spec) listWriters(s *world, i int, add func(world, string, ...any)) {
	p := &s.p[i]
	if p.micro == 0 {
		p.micro = 1
		s.list(s.intent, s.fresh.intents, 0, func(s world, seen uint8) {
			s.p[i].seen = seen
			add(s, "list intents/: %02b", seen)
		})
		return
	}
	for r := range s.cond {
		c := &s.cond[r]
		if p.recs>>r&1 != 0 && c.there && !c.waits {
			c.waits, c.wait = true, p.seen
			if sp.noWaits && r != i {
				c.wait = 0
			}
		}
	}
	p.step()
	add(*s, "store whom to wait for")
}

// waits returns the writers that a pruner has to resolve. A record that another
// pruner has ended in the meantime waits for nobody.
func (s *world) waits(p *prunerAt) (w uint8) {
	for r, c := range s.cond {
		if p.recs>>r&1 != 0 {
			w |= c.wait
		}
	}
	return w
}

// resolve looks at one writer after the other. A writer that lives is waited for,
// which changes nothing; any may seem silent.
func (sp *spec) resolve(from *world, i int, add func(world, string, ...any)) {
	s := *from
	p := &s.p[i]
	wait := s.waits(p)
	for p.at < maxWriters && wait>>p.at&1 == 0 {
		p.at++
	}
	if p.at == maxWriters {
		p.step()
		p.at = 0
		add(s, "all writers are resolved")
		return
	}
	me := uint8(1) << p.at
	nextWriter := func(p *prunerAt) {
		p.at++
		p.micro = 0
		if sp.anyResolved {
			p.at = maxWriters
		}
	}
	switch p.micro {
	case 0:
		p.micro = 1
		s.list(s.intent, s.fresh.intents, 0, func(s world, seen uint8) {
			s.p[i].seen = seen
			add(s, "list intents/: %02b", seen)
		})
	case 1:
		v := sp.judge(p.seen&me != 0, recordState(s.record[p.at]), true)
		switch {
		case v == declared || sp.dropCommitted && v == committed:
			p.micro = 3
			add(s, "writer %d is dead, or committed", p.at)
		case v.resolved():
			nextWriter(p)
			add(s, "writer %d is resolved: %d", p.at, v)
		case sp.noTombstone:
			s.withdraw(me)
			nextWriter(p)
			add(s, "drop the intent of silent writer %d", p.at)
		default:
			if sp.intentFirst {
				s.withdraw(me)
			}
			p.micro = 2
			add(s, "writer %d seems silent", p.at)
		}
	case 2:
		if recordState(s.record[p.at]) == noRecord {
			s.record[p.at] = uint8(aTombstone)
		}
		p.micro, p.seen = 1, p.seen|me
		add(s, "put a tombstone for writer %d, look again", p.at)
	case 3:
		s.withdraw(me)
		if sp.dropTombstone && recordState(s.record[p.at]) == aTombstone {
			s.record[p.at] = uint8(noRecord)
		}
		nextWriter(p)
		sp.removed(s, anIntent, me, add, "remove the intent of writer %d", bits.TrailingZeros8(me))
	}
}

// copyOut stores the needed chunks that no other pack may hold in one new pack,
// then lists that.
func (sp *spec) copyOut(s *world, i int, add func(world, string, ...any)) {
	p := &s.p[i]
	if p.micro == 1 {
		s.exists |= p.own
		if !sp.copyUnlisted {
			s.segment |= p.own
		}
		p.step()
		add(*s, "list the copy")
		return
	}
	held := p.own
	for m := uint8(1); m != 0; m <<= 1 {
		if sp.mayHold(p.packs&m != 0, p.cond&m != 0) && (s.listed()&m != 0 || sp.holdUnlisted) {
			held |= m
		}
	}
	if !slices.Contains(sp.prune, doListPacks) {
		held = s.listed() &^ p.cond // what the index knows
	}
	mine := s.mine(p) // but for those that are gone
	if slices.Contains(sp.prune, doListPacks) {
		mine &= p.packs
	}
	var missing uint8
	for c := uint8(1); c <= 2; c <<= 1 {
		h := s.holders(c)
		if p.live&c != 0 && h&mine != 0 && h&held == 0 {
			missing |= c
		}
	}
	if missing == 0 {
		p.step()
		add(*s, "nothing to copy")
		return
	}
	if sp.uncondemn {
		for r := range s.cond {
			if p.recs>>r&1 != 0 {
				s.cond[r].there = false
			}
		}
		p.done = true
		add(*s, "take back what is condemned")
		return
	}
	for c := uint8(1); c <= 2; c <<= 1 {
		if missing&c != 0 && s.holders(c)&s.exists == 0 {
			for pc, st := range sp.prune {
				if st == doListRecords {
					p.pc, p.micro = uint8(pc), 0
					add(*s, "a source is gone: mark again")
				}
			}
			return
		}
	}
	old := uint8(0)
	if sp.reuse {
		old = s.used &^ s.exists
	}
	name, ok := s.newPack(old)
	if !ok {
		return
	}
	p.own |= name
	sp.come(&s.fresh.packs, name)
	if sp.segmentFirst {
		s.used |= name
		s.content[bits.TrailingZeros8(name)] = missing
		s.segment |= name
	} else {
		s.put(name, missing)
	}
	p.micro = 1
	add(*s, "copy %02b to %08b", missing, name)
}

// removePack removes one condemned pack.
func (sp *spec) removePack(s *world, i int, add func(world, string, ...any)) {
	p := &s.p[i]
	m := s.mine(p) & s.exists
	if m == 0 {
		p.step()
		add(*s, "all packs are removed")
		return
	}
	m &= -m
	s.exists &^= m
	s.fresh.packs &^= m
	sp.come(&s.fresh.ghosts, m)
	sp.removed(*s, aPack, m, add, "remove pack %08b", m)
}

// endCondemned removes one record whose packs are gone, first what it waits for.
func (sp *spec) endCondemned(s *world, i int, add func(world, string, ...any)) {
	p := &s.p[i]
	for r := range s.cond {
		c := &s.cond[r]
		if p.recs>>r&1 == 0 || !c.there || p.stay>>r&1 != 0 && !sp.settledLate || s.unsettled(sp, p)>>r&1 != 0 {
			continue
		}
		if c.waits {
			c.waits, c.wait = false, 0
			add(*s, "remove what record %d waits for", r)
		} else {
			c.there = false
			s.fresh.conds &^= 1 << r
			sp.removed(*s, aCondemned, 1<<r, add, "remove record %d", r)
		}
		return
	}
	p.step()
	add(*s, "all records are removed")
}

// tidy removes hidden records whose writers are gone, then what hides them.
func (sp *spec) tidy(s *world, i int, add func(world, string, ...any)) {
	p := &s.p[i]
	switch p.micro {
	case 0:
		p.snaps = s.forgotten
		p.micro = 1
		if sp.lag {
			p.micro = 4
		}
		if p.snaps == 0 {
			p.done = true
		}
		add(*s, "list forgotten/: %03b", p.snaps)
	case 4:
		if s.catchUp(&p.await) {
			p.micro = 1
		}
		add(*s, "%s", doCatchUp)
	case 1:
		p.micro = 2
		s.list(s.intent, s.fresh.intents, 0, func(s world, seen uint8) {
			s.p[i].seen = seen
			add(s, "list intents/: %02b", seen)
		})
	case 2, 3:
		for r := range records {
			at := uint8(1) << r
			if p.snaps&at == 0 || !sp.mayRemoveRecord(p.seen&at != 0, s.recordSettled(r)) {
				p.snaps &^= at
				continue
			}
			hider := (p.micro == 2) == sp.forgottenFirst
			if !hider {
				s.record[r] = uint8(noRecord)
			} else {
				s.forgotten &^= at
			}
			if p.micro == 3 {
				p.snaps &^= at
			}
			p.micro ^= 1
			if hider {
				sp.removed(*s, aForgotten, at, add, "remove what hides record %d", r)
				return
			}
			add(*s, "remove record %d", r)
			return
		}
		p.done = true
		add(*s, "tidy")
	}
}

// forgetter forgets one record.
func (sp *spec) forgetter(from *world, dst []next) []next {
	if from.f.done {
		return dst
	}
	add := func(s world, format string, args ...any) {
		s.clean(sp, sp.writerSteps())
		dst = append(dst, next{s, sp.label("forget", 0, format, args)})
	}
	s := *from
	f := &s.f
	if int(f.pc) == len(sp.forget) {
		f.done = true
		return dst
	}
	switch st := sp.forget[f.pc]; st {
	case doListRecords:
		there := uint8(0)
		for r := range records {
			if recordState(s.record[r]) == aRecord {
				there |= 1 << r
			}
		}
		f.pc++
		s.list(there, s.fresh.records, 0, func(s world, seen uint8) {
			s.f.seen = seen
			add(s, "list snapshots/: %03b", seen)
		})
	case doCatchUp:
		if s.catchUp(&f.await) {
			f.pc++
		}
		add(s, "%s", st)
	case doListIntents:
		f.pc++
		s.list(s.intent, s.fresh.intents, 0, func(s world, seen uint8) {
			s.f.intents = seen
			add(s, "list intents/: %02b", seen)
		})
	case doRemoveRecord:
		for r := range records {
			if f.seen>>r&1 == 0 {
				continue
			}
			t := s
			if sp.mayRemoveRecord(f.intents>>r&1 != 0, s.recordSettled(r)) {
				t.record[r] = uint8(noRecord)
			} else {
				t.forgotten |= 1 << r
			}
			t.f.done = true
			add(t, "forget record %d", r)
		}
	}
	return dst
}
