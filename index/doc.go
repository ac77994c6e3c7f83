// Package index tells where chunks are: chunk ID -> locations. The truth lies
// in the repository, as segments; what this package keeps on the machine is a
// cache of them, which may be deleted at any time.
//
// It never decides whether a pack may be relied on, never holds a chunk, never
// trusts a location (who reads through one proves the chunk by its ID), and
// never waits for another process. It is the only package that knows badger.
// The store and the repository use it; nothing else needs to.
//
// # Segments
//
// A segment is the object index/<32 hexadecimal digits>, of kind 'I', sealed
// for all nodes (package seal, sealing 1), under a random name that is used
// once. Its plain body is a version byte, 1, and then fields in the wire format
// of protocol buffers, as in a pack's trailer: ascending order when written,
// any order when read, fields of unknown number kept as they are.
//
//	1  bytes  name of a segment that this one replaces, 16 bytes; repeated
//	2  bytes  name of a pack that was dropped, 16 bytes; repeated
//	3  bytes  plain trailer of a pack (package pack); repeated
//
// A body has at most 64 MiB. Segments are a set, their order means nothing:
// what one of them drops is dropped whichever of them lists it, for a pack that
// was dropped never comes back under its name. Drops and replacements count only
// in segments that the repository's owner signed, and a trailer only if its own
// signature is that of a known writer. Everything that a merged segment
// lists was listed by those that it replaces, or by the pack itself.
//
// Merge puts small segments together, Compact rewrites those with much in them
// that nobody needs any more. Both leave out the packs that are gone, read the
// segments before they list the packs, and remove only what they have read, after
// what is left of it is stored. A listing that these keys cannot prove, because
// they do not know its writer, is kept for those who do. The name of a dropped
// pack is forgotten when the pack is gone and no segment lists it.
//
// # Writers who lie
//
// A writer may list whatever it likes, signed by itself: chunks that it never
// stored, and packs that others wrote. Who reads proves each chunk, so that can
// only mislead, and must not hide what honest writers list:
//
//   - Where two listings of a pack differ, in its writer or in anything else, the
//     pack decides: it is created once and never replaced, and its own trailer is
//     signed. Where the writers differ the owner's word and one's own count
//     without asking. The one that is known stays while the pack cannot
//     be read, and for good if it is gone or does not prove itself. As long as
//     something is undecided no generation is built. A listing that nobody
//     contradicts costs no request, true or not.
//   - Of one chunk each pack counts once, and each writer maxLocations times.
//     Lookup gives the packs of the owner and of oneself first, and of all others
//     in turns, one for each writer.
//
// # The cache
//
// A cache directory holds generations. A generation is a directory that is
// written once, by one process, and then only read, by any number of them:
//
//	index/builder         whoever holds its flock may write a generation
//	index/tmp-<random>    a generation that is being written, or removed
//	index/v1-<20 digits>  a generation; the highest number is the newest
//	    lock              held shared by everyone who uses the generation
//	    c000001.sst ...   tables chunk ID -> locations
//	    p000001.sst ...   tables pack name -> header and size
//	    meta              what the generation covers, and its tables
//
// The tables are badger's table format (badger/v4/table: blocks of 4 KiB with a
// CRC-32C each, a block index, a Bloom filter), uncompressed, mapped, sorted and
// disjoint. Badger's engine is left out. Its tables are written through shared
// mappings, so a full disk kills the process with SIGBUS; when it opens damaged
// ones it ends the process with log.Fatal. Generations are written with
// write(2), and opened only when their sizes and ends are what meta says.
//
// Keys carry badger's version suffix, always that of version 1. All numbers of
// a value are little endian. The value of a chunk is one or several locations
// of 28 bytes: number of the pack, frame, offset, stored length, plain length,
// start, length, 4 bytes each. The number of a pack is its place among the
// sorted names of the generation's packs. The value of a pack is
//
//	 0   1  kind
//	 1   4  epoch of the wrapped key
//	 5  16  writer
//	21  16  session
//	37   8  size of the pack file
//	45      wrapped key
//
// meta is a version byte, 1, fields as above, and the BLAKE3 hash of all before:
//
//	1  bytes   ID of the repository
//	2  bytes   lineage, 16 random bytes: of two generations of one lineage the
//	           higher one holds all that the lower one holds
//	3  bytes   names of the segments it covers, 16 bytes each
//	4  bytes   names of dropped packs, 16 bytes each
//	5  bytes   names of its packs, 16 bytes each, sorted
//	6  bytes   a table of chunks: 1 varint size, 2 bytes its last 32 bytes
//	7  bytes   a table of packs: the same
//	8  varint  how many chunk IDs it holds
//	9  bytes   for each of its packs the first 16 bytes of the BLAKE3 hash of the
//	           signature of the trailer that it was taken from; zero: not known
//
// What is newer than the generation is in the private memory of each process.
// Once that has grown beyond a limit, and the builder's lock is free, the
// process merges both into the next generation and switches to it. Only what
// is published moves: a process that stores a huge first snapshot empties its
// memory into generations as it publishes segments. A process that does not get
// the lock keeps its memory, and takes over the other's generation at its next
// Sync. A generation is built, too, when segments of many bytes are not covered
// by the newest one, for each process has to read those anew. If segments were
// merged since the last one, packs that a listing does not show any more are
// left out: who was away when they were dropped may never learn it otherwise.
// (Where listings lag they stay; a location in a pack that is gone costs one
// request.)
//
// A generation that is damaged is reported, set aside and forgotten: lookups
// then miss, and the next Sync reads the segments again.
package index
