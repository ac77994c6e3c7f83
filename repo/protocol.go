package repo

import "time"

// What committing, pruning and forgetting decide, apart from how they look and
// act: the order of their steps, and pure functions over what was listed. The
// state-space test drives these same orders and functions over all
// interleavings of writers, pruners and crashes, and shows for each step and
// each order that leaving it out or swapping it loses data.

// step is one step of a protocol. Each looks once at the repository or changes
// one thing in it.
type step string

const (
	doAnnounce      step = "put the intent"
	doListCondemned step = "list condemned/"
	doListPacks     step = "list packs/"
	doStore         step = "store chunks"
	doCommit        step = "put the record"
	doWithdraw      step = "remove the intent"

	doCondemn      step = "put the condemned record"
	doListWriters  step = "list intents/"
	doResolve      step = "resolve the writers"
	doListRecords  step = "list snapshots/ and mark"
	doCopyOut      step = "copy what is needed"
	doRemovePacks  step = "remove the packs"
	doEndCondemned step = "remove the condemned record"

	doListIntents  step = "list intents/ again"
	doRemoveRecord step = "remove or hide the record"

	// What was put before it is in every listing that begins after it, and what
	// was removed in none. It takes the backend's lag, mostly no time at all.
	doCatchUp step = "wait for listings that lag"
)

var (
	// beginOrder and endOrder are the writer's; between them it stores chunks,
	// each pack before the segment that lists it (chunkstore.Writer).
	beginOrder = []step{doAnnounce, doCatchUp, doListCondemned, doListPacks}
	endOrder   = []step{doCommit, doWithdraw}

	pruneOrder = []step{
		doCondemn, doCatchUp, doListWriters, doResolve, doCatchUp, doListRecords, doCatchUp, doListCondemned, doListPacks,
		doCopyOut, doRemovePacks, doCatchUp, doEndCondemned,
	}

	forgetOrder = []step{doListRecords, doCatchUp, doListIntents, doRemoveRecord}
)

// mayHold reports whether a pack that a listing has counts as a place of its
// chunks: for a writer to lean on, for a pruner to leave a chunk to. It must not
// be condemned by anybody, in a listing of condemned/ that was made before that
// of packs/.
func mayHold(listed, condemned bool) bool { return listed && !condemned }

// verdict is what became of a writer that a pruner waits for.
type verdict int

const (
	ended     verdict = iota // its intent is gone: it has committed, and knows, or given up
	committed                // its record is there
	declared                 // its tombstone is there: the intent may go
	silent                   // to be declared dead
	alive                    // to be waited for
)

// recordState is what stands at snapshots/<id>.
type recordState int

const (
	noRecord recordState = iota
	aRecord
	aTombstone
)

// judge decides about a writer from its intent, what stands in the place of its
// record, and whether it has been silent for longer than the grace. The intent
// of a committed record stays: its writer may still be repeating the Put that
// succeeded, and only that name being taken keeps it from committing again what
// was forgotten meanwhile.
func judge(intent bool, r recordState, stale bool) verdict {
	switch {
	case !intent:
		return ended
	case r == aRecord:
		return committed
	case r == aTombstone:
		return declared
	case stale:
		return silent
	}
	return alive
}

// overdue reports whether a writer that has been silent for so long may be
// declared dead. Where create-if-absent is not fenced none may: it could commit
// over its tombstone.
func overdue(silent, grace time.Duration, fenced bool) bool { return fenced && silent > grace }

// resolved reports whether a pruner need not wait for the writer any more.
func (v verdict) resolved() bool { return v != alive && v != silent }

// outcome is what a Put of the record came to.
type outcome int

const (
	success   outcome = iota
	lost              // somebody declared this writer dead
	failed            // surely not there, and it will not come
	uncertain         // it may be there, or come yet: the intent must stay
)

// settle decides what a Put of the record that failed came to, from what stands
// in its place now. own: the record that was put. sure: no such Put is under way
// any more.
func settle(there, own, sure bool) outcome {
	switch {
	case there && own:
		return success
	case there:
		return lost
	case sure:
		return failed
	}
	return uncertain
}

// mayRemoveRecord reports whether a forgotten record may be removed: nobody can
// put it again, and no Put of it is under way. Otherwise it is hidden. The intent
// is looked for after the record was seen: a writer removes its intent only after
// its commit was acknowledged.
func mayRemoveRecord(intent, settled bool) bool { return !intent && settled }

// mayEndCondemned reports whether a condemned record may be removed, whose packs
// are gone. One that is put late comes back; nobody must lean on it, for it is
// removed again, and indexes deny it.
func mayEndCondemned(settled bool) bool { return settled }

// settled reports whether no Put of what stands in the storage since put is under
// way any more, as something else was put so much later. Both times are the
// backend's; of what has none nobody knows.
func settled(put, later time.Time, late time.Duration) bool {
	return late == 0 || put.Unix() > 0 && later.Sub(put) > late
}

// isLive reports whether what stands at snapshots/<id> needs its chunks.
func isLive(r recordState, forgotten bool) bool { return r == aRecord && !forgotten }
