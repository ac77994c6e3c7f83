package repo

import (
	"hash/maphash"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// fingerprints remembers states by 64 bits of their hash. Among a hundred million
// states two are taken for one with a probability of one in four thousand.
type fingerprints struct {
	slots []uint64
	n     int
}

func (f *fingerprints) add(h uint64) bool {
	h |= 1
	if f.n*3 >= len(f.slots)*2 {
		old := f.slots
		f.slots, f.n = make([]uint64, max(1<<12, 2*len(old))), 0
		for _, h := range old {
			if h != 0 {
				f.add(h)
			}
		}
	}
	mask := uint64(len(f.slots) - 1)
	for i := h >> 1 & mask; ; i = (i + 1) & mask {
		switch f.slots[i] {
		case h:
			return false
		case 0:
			f.slots[i] = h
			f.n++
			return true
		}
	}
}

// finding is a bad state, and how it came to be.
type finding struct {
	what  string
	steps []string
}

// explore visits the states that can be reached, at most limit. It returns how
// many those were, and the first bad one.
func (sp *spec) explore(c setup, limit int) (states int, bad *finding) {
	type frame struct {
		after []next
		at    int // of after, being visited
	}
	if sp.lag = c.lag; !sp.lag { // then it takes no time
		sp.begin, sp.prune, sp.forget, sp.merge = without(sp.begin, doCatchUp), without(sp.prune, doCatchUp), without(sp.forget, doCatchUp), without(sp.merge, doCatchUp)
	}
	sp.order = nil
	seed := maphash.MakeSeed()
	var seen fingerprints
	first := firstWorld(c)
	stack := []frame{{after: sp.successors(c, &first, nil), at: -1}}
	var free [][]next
	for len(stack) > 0 && seen.n < limit {
		f := &stack[len(stack)-1]
		if f.at++; f.at == len(f.after) {
			free = append(free, f.after[:0])
			stack = stack[:len(stack)-1]
			continue
		}
		s := &f.after[f.at].s
		h := maphash.Comparable(seed, *s)
		if !seen.add(h) {
			continue
		}
		what := s.lost()
		if what == "" && h%64 == 0 {
			what = sp.leak(c, *s)
		}
		if what != "" {
			path := make([]int, len(stack))
			for i := range stack {
				path[i] = stack[i].at
			}
			return seen.n, sp.retrace(c, path, what)
		}
		var after []next
		if n := len(free); n > 0 {
			after, free = free[n-1], free[:n-1]
		}
		stack = append(stack, frame{sp.successors(c, s, after), -1})
	}
	return seen.n, nil
}

// retrace goes a path again, to tell it.
func (sp *spec) retrace(c setup, path []int, what string) *finding {
	talk := *sp
	talk.trace = true
	f := &finding{what: what}
	s := firstWorld(c)
	for _, i := range path {
		n := talk.successors(c, &s, nil)[i]
		f.steps = append(f.steps, n.what)
		s = n.s
	}
	f.steps = append(f.steps, s.String())
	return f
}

// leak lets every actor crash in this state, and tells what is left after the
// runs of prune that follow although nobody needs it.
func (sp *spec) leak(c setup, s world) string {
	for i := range s.w {
		s.w[i].stopped, s.w[i].flight = true, false
	}
	s.f.done, s.fresh, s.late = true, unseen{}, underWay{}
	for i := range s.m {
		s.m[i].done = true
	}
	runs := 2
	if s.cond[0].there && s.cond[1].there {
		runs++ // the model has no room for a third record
	}
	for range runs {
		s.p[0], s.p[1] = prunerAt{done: true}, prunerAt{}
		if !s.cond[1].there {
			s.cond[1] = condRecord{}
		} else {
			s.cond[0], s.cond[1] = s.cond[1], s.cond[0]
			if s.cond[1].there {
				s.cond[1].used = true
			} else {
				s.cond[1] = condRecord{}
			}
		}
		for n := 0; !s.p[1].done; n++ {
			if n == 1000 {
				return "prune does not end"
			}
			if int(s.p[1].pc) < len(sp.prune) && sp.prune[s.p[1].pc] == doCondemn && s.p[1].micro == 1 {
				if waste := s.waste() &^ s.condemned(); waste != 0 && !s.cond[1].used {
					s.cond[1] = condRecord{there: true, packs: waste, used: true}
					s.p[1].recs |= 2
				}
				s.p[1].step()
				continue
			}
			after := sp.pruner(&s, 1, nil)
			if len(after) == 0 {
				return "" // no room for another pack in the model
			}
			s = after[0].s
		}
	}
	if what := s.lost(); what != "" {
		return what + " when all had crashed and prune ran"
	}
	if w := s.waste(); w != 0 {
		return "packs that nobody needs are left"
	}
	if s.cond[0].there || s.cond[1].there {
		return "a condemned record is left"
	}
	return ""
}

// waste returns the packs that hold a chunk that nobody needs, or that another
// holds too: a listed one, if there is one.
func (s *world) waste() (packs uint8) {
	var live, have uint8
	for r := range records {
		if recordState(s.record[r]) == aRecord && s.forgotten>>r&1 == 0 {
			live |= needs[r]
		}
	}
	for _, which := range []uint8{s.exists & s.listed(), s.exists &^ s.listed()} {
		for i, c := range s.content {
			if m := uint8(1) << i; which&m != 0 {
				if c&^live != 0 || c&have != 0 {
					packs |= m
				}
				have |= c
			}
		}
	}
	return packs
}

func tell(f *finding) string { return f.what + ":\n    " + strings.Join(f.steps, "\n    ") }

// setups are tried one after the other, the small ones first.
var setups = []setup{
	{1, 1, 0, false, false, false, 0}, {0, 2, 0, true, false, false, 0}, {1, 0, 2, false, false, false, 0}, {1, 1, 1, false, false, false, 0}, {1, 1, 0, true, true, false, 0}, {2, 1, 0, false, false, false, 0},
	{1, 1, 2, false, false, false, 0}, {1, 2, 0, false, false, false, 0}, {2, 1, 0, true, true, false, 0}, {2, 1, 1, false, false, false, 0}, {1, 2, 0, true, true, false, 0}, {2, 2, 0, true, true, false, 0}, {2, 2, 2, true, true, false, 0},
}

// lagging are those in which listings lag.
var lagging = []setup{
	{1, 1, 0, false, false, true, 0}, {0, 2, 0, true, false, true, 0}, {1, 1, 0, true, true, true, 0}, {1, 0, 2, false, false, true, 0}, {1, 1, 1, false, false, true, 0},
	{2, 1, 0, false, false, true, 0},
	{1, 2, 0, false, false, true, 0}, {1, 2, 0, true, true, true, 0}, {2, 2, 2, true, true, true, 0},
}

// tardy are those in which calls are done late, or once more.
var tardy = []setup{
	{1, 1, 0, false, false, false, 1}, {1, 1, 0, true, false, false, 1}, {0, 2, 0, true, false, false, 2}, {1, 0, 2, false, false, false, 1},
	{1, 1, 0, false, false, false, 2}, {2, 1, 0, false, false, false, 1}, {1, 1, 0, true, true, false, 2}, {1, 2, 0, false, false, false, 1},
	{1, 1, 1, false, false, false, 1}, {1, 1, 0, false, false, true, 1}, {2, 1, 0, true, true, false, 2}, {2, 2, 2, true, true, true, 2},
}

// TestModel explores all that writers, pruners, mergers and a forget can do to
// each other. A reader needs no part in it: that each needed chunk lies in a pack
// that is there and listed, in every state, is all that it asks for.
func TestModel(t *testing.T) {
	if testing.Short() {
		t.Skip("short: one goroutine, nothing to race with")
	}
	limit := 200_000
	if os.Getenv("CUTBANK_SLOW") != "" {
		limit = 2_000_000
	}
	if v := os.Getenv("CUTBANK_STATES"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("CUTBANK_STATES: %v", err)
		}
		limit = n
	}
	total := 0
	some := limit
	for _, c := range slices.Concat(setups, lagging, tardy) {
		sp := theSpec()
		if limit = some; c.late > 0 {
			limit = max(some, 1_000_000) // all states of most
		}
		n, bad := sp.explore(c, limit)
		total += n
		if bad != nil {
			t.Fatal(tell(bad))
		}
		all := "all"
		if n == limit {
			all = "the first"
		}
		t.Logf("%s: %s %d states", c, all, n)
	}
	t.Logf("%d states visited, no chunk lost, nothing left for ever", total)
}
