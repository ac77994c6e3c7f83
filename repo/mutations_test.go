package repo

import (
	"slices"
	"testing"
)

// swap returns an order with two steps changed for each other, without one of
// them left out.
func swap(order []step, a, b step) []step {
	o := slices.Clone(order)
	i, j := slices.Index(o, a), slices.Index(o, b)
	o[i], o[j] = o[j], o[i]
	return o
}

// ahead moves step a to in front of step b.
func ahead(order []step, a, b step) []step {
	o := slices.DeleteFunc(slices.Clone(order), func(s step) bool { return s == a })
	return slices.Insert(o, slices.Index(o, b), a)
}

func without(order []step, a step) []step {
	return slices.DeleteFunc(slices.Clone(order), func(s step) bool { return s == a })
}

// hasty leaves out the waiting in front of step a.
func hasty(order []step, a step) []step {
	i := slices.Index(order, a)
	if order[i-1] != doCatchUp {
		panic("nobody waits before this: " + a)
	}
	return slices.Delete(slices.Clone(order), i-1, i)
}

type mutation struct {
	name   string
	change func(*spec)
}

var mutations = []mutation{
	{"writer: lists condemned/ before its intent is there", func(s *spec) { s.begin = ahead(s.begin, doListCondemned, doAnnounce) }},
	{"writer: lists both before its intent is there", func(s *spec) { s.begin = []step{doListCondemned, doListPacks, doAnnounce} }},
	{"writer: puts no intent", func(s *spec) { s.begin = without(s.begin, doAnnounce) }},
	{"writer: lists packs/ before condemned/", func(s *spec) { s.begin = swap(s.begin, doListCondemned, doListPacks) }},
	{"writer: does not list condemned/", func(s *spec) { s.begin = without(s.begin, doListCondemned) }},
	{"writer: does not list packs/, but leans on the index", func(s *spec) { s.begin = without(s.begin, doListPacks) }},
	{"writer: leans on what is condemned", func(s *spec) { s.mayHold = func(listed, _ bool) bool { return listed } }},
	{"writer: leans on unlisted packs without listing them", func(s *spec) { s.noAdopt = true }},
	{"writer, pruner: segment before pack", func(s *spec) { s.segmentFirst = true }},
	{"writer: record before its packs", func(s *spec) { s.begin = append(slices.Clone(s.begin), doCommit); s.end = without(s.end, doCommit) }},
	{"writer: removes its intent before it commits", func(s *spec) { s.end = swap(s.end, doCommit, doWithdraw) }},
	{"writer: commits over a tombstone", func(s *spec) { s.overwrite = true }},
	{"writer: takes a tombstone for success", func(s *spec) {
		s.settle = func(there, own, sure bool) outcome { return settle(there, there || own, sure) }
	}},
	{"writer: takes doubt for failure", func(s *spec) { s.settle = func(there, own, _ bool) outcome { return settle(there, own, true) } }},
	{"writer: takes doubt for success", func(s *spec) {
		s.settle = func(there, own, sure bool) outcome { return settle(there || !sure, own || !there, sure) }
	}},
	{"pruner: does not put what it condemns", func(s *spec) {
		s.mayHold = func(listed, _ bool) bool { return listed }
		s.prune = ahead(s.prune, doListWriters, doCondemn)
	}},
	{"pruner: lists the writers before it condemns", func(s *spec) { s.prune = ahead(s.prune, doListWriters, doCondemn) }},
	{"pruner: lists no writers", func(s *spec) { s.prune = without(s.prune, doListWriters) }},
	{"pruner: does not wait for writers", func(s *spec) { s.prune = without(s.prune, doResolve) }},
	{"pruner: takes what a record waits for for the record", func(s *spec) { s.partsAlone = true }},
	{"pruner: waits for one writer only", func(s *spec) { s.anyResolved = true }},
	{"pruner: takes up a record without asking whom it waits for", func(s *spec) { s.noWaits = true }},
	{"pruner: takes a silent writer for ended", func(s *spec) {
		s.judge = func(intent bool, r recordState, stale bool) verdict {
			if v := judge(intent, r, stale); v != silent {
				return v
			}
			return ended
		}
	}},
	{"pruner: puts no tombstone", func(s *spec) { s.noTombstone = true }},
	{"pruner: removes the intent before the tombstone is there", func(s *spec) { s.intentFirst = true }},
	{"pruner: removes tombstones", func(s *spec) { s.dropTombstone = true }},
	{"pruner: removes the intent of a committed record", func(s *spec) { s.dropCommitted = true }},
	{"pruner: marks before the writers are resolved", func(s *spec) { s.prune = ahead(s.prune, doListRecords, doResolve) }},
	{"pruner: marks before it lists the writers", func(s *spec) { s.prune = ahead(s.prune, doListRecords, doListWriters) }},
	{"pruner: marks nothing", func(s *spec) { s.isLive = func(recordState, bool) bool { return false } }},
	{"pruner: lists packs/ before condemned/", func(s *spec) { s.prune = swap(s.prune, doListCondemned, doListPacks) }},
	{"pruner: lists condemned/ before its own record is there", func(s *spec) { s.prune = ahead(s.prune, doListCondemned, doCondemn) }},
	{"pruner: does not list condemned/", func(s *spec) { s.prune = without(s.prune, doListCondemned) }},
	{"pruner: does not list packs/, but believes the index", func(s *spec) { s.prune = without(s.prune, doListPacks) }},
	{"pruner: leaves chunks to packs that no segment lists", func(s *spec) { s.holdUnlisted = true }},
	{"pruner: copies nothing", func(s *spec) { s.prune = without(s.prune, doCopyOut) }},
	{"pruner: does not list its copies", func(s *spec) { s.copyUnlisted = true }},
	{"pruner: removes before it copies", func(s *spec) { s.prune = swap(s.prune, doCopyOut, doRemovePacks) }},
	{"pruner: removes the record before the packs", func(s *spec) { s.prune = swap(s.prune, doRemovePacks, doEndCondemned) }},
	{"pruner: removes the record before it copies", func(s *spec) { s.prune = ahead(s.prune, doEndCondemned, doCopyOut) }},
	{"pruner: takes back a condemned pack that is needed", func(s *spec) { s.uncondemn = true }},
	{"pruner: names copies like removed packs", func(s *spec) { s.reuse = true }},
	{"pruner: does not end its records", func(s *spec) { s.prune = without(s.prune, doEndCondemned) }},
	{"pruner: does not remove packs", func(s *spec) { s.prune = without(s.prune, doRemovePacks) }},
	{"forget: lists intents before records", func(s *spec) { s.forget = swap(s.forget, doListRecords, doListIntents) }},
	{"forget: removes a record although its intent is there", func(s *spec) { s.mayRemoveRecord = func(_, settled bool) bool { return settled } }},
	{"forget, pruner: remove a record although a Put of it is under way", func(s *spec) { s.mayRemoveRecord = func(intent, _ bool) bool { return !intent } }},
	{"forget: removes without looking for intents", func(s *spec) { s.forget = without(s.forget, doListIntents) }},
	{"forget: what hides a record goes before the record", func(s *spec) { s.forgottenFirst = true }},
	{"merger: lists packs/ before it reads the segments", func(s *spec) { s.merge = swap(s.merge, doReadSegments, doListPacks) }},
	{"merger: removes before it puts", func(s *spec) { s.merge = swap(s.merge, doPutMerged, doRemoveSegments) }},
	{"merger: removes segments that it did not read", func(s *spec) { s.mergeLate = true }},
	{"merger: puts nothing", func(s *spec) { s.merge = without(s.merge, doPutMerged) }},
	{"all: forgotten records count as live", func(s *spec) { s.isLive = func(r recordState, _ bool) bool { return r == aRecord } }},
}

// lags are those of which only listings that lag make a loss. The waiting that is
// not among them, before condemned/ by pruners and before intents/ by forget, is for
// changes that what others wait for has made old by then.
var lags = []mutation{
	{"writer: does not wait before it lists condemned/", func(s *spec) { s.begin = hasty(s.begin, doListCondemned) }},
	{"pruner: does not wait before it lists the writers", func(s *spec) { s.prune = hasty(s.prune, doListWriters) }},
	{"pruner: does not wait before it lists snapshots/", func(s *spec) { s.prune = hasty(s.prune, doListRecords) }},
	{"pruner: does not wait before it removes the record", func(s *spec) { s.prune = hasty(s.prune, doEndCondemned) }},
	{"merger: does not wait before it lists packs/", func(s *spec) { s.merge = hasty(s.merge, doListPacks) }},
}

// lates are those of which only calls that are done late make a loss.
var lates = []mutation{
	{"pruner: ends what is condemned although it may come back", func(s *spec) { s.mayEndCondemned = func(bool) bool { return true } }},
	{"pruner: asks whether a pack may come back when it has removed it", func(s *spec) { s.settledLate = true }},
}

func TestMutations(t *testing.T) {
	if testing.Short() {
		t.Skip("short: one goroutine, nothing to race with")
	}
	try := func(m mutation, among []setup) {
		t.Run(m.name, func(t *testing.T) {
			states := 0
			for _, c := range among {
				sp := theSpec()
				m.change(&sp)
				n, bad := sp.explore(c, 5e6)
				states += n
				if bad != nil {
					t.Logf("%s, %d states: %s, in %d steps", c, states, bad.what, len(bad.steps))
					return
				}
			}
			t.Errorf("%d states, and nothing is lost: the model does not see what this is for", states)
		})
	}
	for _, m := range mutations {
		try(m, setups)
	}
	for _, m := range lags {
		try(m, lagging[:len(lagging)-1])
	}
	for _, m := range lates {
		try(m, tardy)
	}
}
