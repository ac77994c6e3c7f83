// Package system says what cutbank asks of a running system: to be captured as a
// tree of nodes, and to take such a tree back. Each kind is a package below it,
// which knows its system and nothing of repositories.
//
// A capture has three steps. Capture makes the system flush and pin one state, and
// returns when that state cannot change any more, or when reading it is what pins
// it. Then Root is read, once, in any order. Finish says, when all was read,
// whether that was whole, and what the system told of itself; only then is the
// snapshot committed. Close gives back what is pinned, in any case, and is told whether
// the snapshot was committed. A run that dies
// between leaves its pins: what is pinned under a name has one that the next capture
// of the same system recognizes, and clears.
//
// A package makes itself known to the program by a Kind: its options and environment,
// in the words of the system's own tools, its modes, and its view. Its package doc is
// the page on it: what is in a snapshot, what consistency that has, how to restore in
// production step by step, and what is not covered.
//
// What a snapshot of a system holds is written for machines: records in their
// order, archives taken apart where that makes them deduplicate. What people want
// to see of it is computed by the kind's view, a pure function from the stored tree
// to another, which mount, ls, cat, diff and restore put around it. Views are never
// stored.
package system
