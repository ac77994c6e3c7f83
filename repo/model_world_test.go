package repo

import (
	"fmt"
	"math/bits"
	"strings"
)

// The model: what stands in a repository, reduced to what the protocols are
// about, and the actors that change it. Every actor makes one step at a time, a
// look at one thing or a change of one thing, and may be held up between any two
// for as long as it takes; an actor that crashed is one that is held up for ever.
// Clocks have no place: any writer may seem silent to any pruner at any time.
//
// Where listings lag, a listing shows what is there, or leaves out all that was put
// of late, and shows all packs that were removed of late. Late is what nobody began
// to wait after and has waited for: the lag bounds how long anybody does not see a
// change.

const (
	maxWriters = 2
	maxPruners = 2
	maxMergers = 2
	oldRecord  = maxWriters // the snapshot that is there from the beginning
	records    = maxWriters + 1
	maxPacks   = 8
)

// needs are the chunks of each writer's snapshot, and of the old one.
var needs = [records]uint8{0b11, 0b10, 0b01}

// world is a state. It is comparable and small, for there are millions.
type world struct {
	exists, used      uint8             // packs
	content           [maxPacks]uint8   // their chunks
	segment           uint8             // packs whose own segment, of who stored them, is there
	adopted           [maxWriters]uint8 // the segment of what a writer adopted; 0: none
	merged            [maxMergers]uint8 // what a merged segment lists
	record            [records]uint8    // recordState
	forgotten, intent uint8             // of records, of writers
	mergedThere       uint8             // merged segments
	cond              [maxPruners]condRecord
	fresh             unseen
	late              underWay
	dropped           uint8 // packs that are gone, as indexes say, and may come back
	w                 [maxWriters]writer
	p                 [maxPruners]prunerAt
	f                 forgetter
	m                 [maxMergers]merger
}

// listed returns the packs that some segment lists.
func (s *world) listed() uint8 {
	l := s.segment
	for _, a := range s.adopted {
		l |= a
	}
	for i, m := range s.merged {
		if s.mergedThere>>i&1 != 0 {
			l |= m
		}
	}
	return l &^ s.dropped
}

// unseen are changes that listings may not show yet.
type unseen struct {
	packs, intents, conds, records uint8 // that were put
	ghosts                         uint8 // packs that were removed
}

// catchUp makes two steps of waiting, and reports whether it is over: what was put
// or removed before the first is seen by all after the second.
func (s *world) catchUp(await *unseen) (over bool) {
	if *await == (unseen{}) {
		*await = s.fresh
		return *await == (unseen{})
	}
	f, a := &s.fresh, await
	f.packs &^= a.packs
	f.intents &^= a.intents
	f.conds &^= a.conds
	f.records &^= a.records
	f.ghosts &^= a.ghosts
	*await = unseen{}
	return true
}

type condRecord struct {
	there, waits, used bool
	packs, wait        uint8
}

// writer makes one snapshot.
type writer struct {
	pc          uint8 // in steps
	micro       uint8
	cond        uint8 // packs that were condemned
	usable      uint8 // packs it leans on
	fresh       uint8 // packs it stored
	told        bool  // it says that its snapshot is committed
	stopped     bool
	doubt       bool // it does not know whether its Put succeeded
	flight      bool // a Put of the record is under way
	committedAt bool // its record was there at some time
	await       unseen
}

// prunerAt makes one run.
type prunerAt struct {
	pc, micro uint8
	recs      uint8 // condemned records it works on
	blind     uint8 // of them, those whose packs it does not know
	seen      uint8 // intents it saw
	snaps     uint8 // records it saw
	live      uint8 // chunks that are needed
	cond      uint8 // packs that were condemned
	packs     uint8 // packs that were there
	own       uint8 // packs it stored
	stay      uint8 // condemned records of which a pack might come back, when it listed packs
	at        uint8 // writer that it is resolving
	done      bool
	await     unseen
}

// merger puts the segments that it read together.
type merger struct {
	pc              uint8
	segment         uint8 // own segments of packs that it read
	adopted, merged uint8 // segments of adopters and other mergers that it read
	lists, packs    uint8 // what they list; packs that were there
	done            bool
	await           unseen
}

type forgetter struct {
	pc, seen, intents uint8
	done              bool
	await             unseen
}

// spec is what the actors do: the orders and decisions of the program, or one of
// them changed.
type spec struct {
	begin, end, prune, forget []step
	merge                     []step
	mayHold                   func(listed, condemned bool) bool
	judge                     func(intent bool, r recordState, stale bool) verdict
	settle                    func(there, own, sure bool) outcome
	mayRemoveRecord           func(intent, settled bool) bool
	mayEndCondemned           func(settled bool) bool
	isLive                    func(r recordState, forgotten bool) bool

	lag   bool   // listings lag
	trace bool   // say what happens
	order []step // of the writers, once known

	// What is not a decision of its own in the program.
	segmentFirst   bool // a segment before the pack that it lists
	copyUnlisted   bool // copies are not listed
	holdUnlisted   bool // packs that no segment lists count as places
	intentFirst    bool // the intent of a dead writer goes before its tombstone comes
	noTombstone    bool // the intent of a silent writer just goes
	dropTombstone  bool // tombstones do not stay
	dropCommitted  bool // the intent of a committed record is removed too
	overwrite      bool // committing replaces a tombstone
	reuse          bool // copies go under the names of removed packs
	uncondemn      bool // a condemned pack that is needed is taken back
	noWaits        bool // a record taken up without stored waits waits for nobody
	anyResolved    bool // one resolved writer is enough
	forgottenFirst bool // what hides a record goes before the record
	noAdopt        bool // unlisted packs are leaned on without listing them
	mergeLate      bool // mergers remove segments that came after they had read
	settledLate    bool // whether a pack may come back is asked when it was removed
	partsAlone     bool // what a record waits for is taken for the record
}

func theSpec() spec {
	return spec{begin: beginOrder, end: endOrder, prune: pruneOrder, forget: forgetOrder, merge: mergeOrder,
		mayHold: mayHold, judge: judge, settle: settle, mayRemoveRecord: mayRemoveRecord, mayEndCondemned: mayEndCondemned, isLive: isLive}
}

// setup says which actors there are.
type setup struct {
	writers, pruners, mergers int
	forget                    bool
	retry                     bool  // writers may lose the answer to their commit
	lag                       bool  // listings lag
	late                      uint8 // how many calls may be done late
}

func (c setup) String() string {
	s := fmt.Sprintf("%d writers, %d pruners, %d mergers", c.writers, c.pruners, c.mergers)
	if c.forget {
		s += ", a forget"
	}
	if c.retry {
		s += ", lost answers"
	}
	if c.lag {
		s += ", listings that lag"
	}
	if c.late > 0 {
		s += fmt.Sprintf(", %d late calls", c.late)
	}
	return s
}

func firstWorld(c setup) world {
	var s world
	s.exists, s.segment, s.used = 0b11, 0b11, 0b11
	s.content[0], s.content[1] = 0b01, 0b10 // the second is needed by nobody yet
	s.record[oldRecord] = uint8(aRecord)
	for i := c.writers; i < maxWriters; i++ {
		s.w[i].stopped = true
	}
	for i := c.pruners; i < maxPruners; i++ {
		s.p[i].done = true
	}
	for i := c.mergers; i < maxMergers; i++ {
		s.m[i].done = true
	}
	s.f.done = !c.forget
	s.late.left = c.late
	return s
}

// lost tells what is wrong with a state, if anything is.
func (s *world) lost() string {
	for r := range records {
		if recordState(s.record[r]) != aRecord || s.forgotten>>r&1 != 0 {
			continue
		}
		for c := range 2 {
			if needs[r]>>c&1 != 0 && s.holders(uint8(1)<<c)&s.exists&s.listed() == 0 {
				return fmt.Sprintf("record %d lost chunk %d", r, c)
			}
		}
	}
	for i := range s.w {
		if s.w[i].told && !s.w[i].committedAt {
			return fmt.Sprintf("writer %d says that it has committed, and has not", i)
		}
	}
	return ""
}

// holders returns the packs that hold a chunk.
func (s *world) holders(chunks uint8) (packs uint8) {
	for i, c := range s.content {
		if c&chunks != 0 {
			packs |= 1 << i
		}
	}
	return packs
}

// newPack returns a name that was never used.
func (s *world) newPack(reuse uint8) (uint8, bool) {
	if reuse != 0 {
		return reuse & -reuse, true
	}
	free := ^s.used
	if free == 0 {
		return 0, false
	}
	return free & -free, true
}

// come notes that something was put; listings may not show it yet.
func (sp *spec) come(unseen *uint8, what uint8) {
	if sp.lag {
		*unseen |= what
	}
}

// list calls f for each state of things that a listing may show, of those that are
// there, with those that it may still show although they are gone.
func (s *world) list(there, unseen, gone uint8, f func(s world, seen uint8)) {
	f(*s, there)
	if stale := there&^unseen | gone; stale != there {
		f(*s, stale)
	}
}

// conds returns the condemned records that are there.
func (s *world) conds() (recs uint8) {
	for r, c := range s.cond {
		if c.there {
			recs |= 1 << r
		}
	}
	return recs
}

// packsOf returns what condemned records name.
func (s *world) packsOf(recs uint8) (packs uint8) {
	for r, c := range s.cond {
		if recs>>r&1 != 0 {
			packs |= c.packs
		}
	}
	return packs
}

func (s *world) put(name, chunks uint8) {
	s.exists |= name
	s.used |= name
	s.content[bits.TrailingZeros8(name)] = chunks
}

func (s *world) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "packs %08b listed %08b content %v records %v forgotten %03b intents %02b", s.exists, s.listed(), s.content, s.record, s.forgotten, s.intent)
	for i, c := range s.cond {
		if c.there {
			fmt.Fprintf(&b, " condemned%d{%08b waits %v %02b}", i, c.packs, c.waits, c.wait)
		}
	}
	return b.String()
}
