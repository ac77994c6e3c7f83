// Package snapfs is the read path: a stored snapshot as tree.Nodes. Mount,
// restore, cat, verify and diff all read through it. It never writes, and it
// gives out no byte that was not proven against its chunk's ID.
//
// Nodes are made on the way and not kept; what is kept is a bounded cache of
// decoded pages, shared by all snapshots. Node numbers (see tree.Numbered) are
// computed from the counts in the pages.
//
// FS adapts a Node to io/fs, for all that speaks that language; names that are
// not UTF-8 cannot be said in it.
package snapfs
