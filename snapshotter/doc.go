// Package snapshotter is the way in: it walks tree.Nodes, cuts what is new,
// stores it and writes the pages and the record of a snapshot. Run never reads a
// stored snapshot's contents, only the pages of the previous one; a Copier reads
// those of another repository. Nothing here removes anything, or changes what it
// reads.
//
// One goroutine walks in preorder, with the previous snapshot's pages and
// witness beside it in the same order. A file whose size, times and inode are
// those of the witness is taken over without being opened, if all its chunks
// still lie in usable packs; all others go in batches to workers, one for each
// core. A directory's page is written when its last entry is known, whoever
// knew it. So pages depend on the tree alone: not on the number of workers, not
// on what was stored before.
//
// A changed file is cut with the previous recipe as a guide: where the bytes of
// an expected length hash to the expected chunk, the splitter need not look
// (chunk.Cutter.Guess).
//
// A Copier is fed with the pages of another repository instead of nodes: its
// workers cut stored files, and its directories are written by the same code, so
// that the copy of a snapshot has the very pages that a snapshot would have had.
package snapshotter
