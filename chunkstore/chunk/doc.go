// Package chunk says what a chunk is: how a stream of bytes is cut into chunks,
// and how a chunk is named. Everything here is a pure function of bytes and of
// a repository's secrets: no I/O but the reader that a Cutter is given, no
// clock, no randomness but the one handed to NewParams.
//
// Everybody above may use it. It imports nothing of this module.
//
// # Names
//
// The ID of a chunk is the keyed BLAKE3 hash of its bytes, under a key that is
// secret to the repository (Hasher).
//
// # Cutting
//
// A stream is cut into pieces by these rules, which are part of the stored
// format: two versions of the program that cut differently would not
// deduplicate against each other.
//
//  1. A maximal run of at least ZeroRun zero bytes, at any offset, is one Zero
//     piece, however long. It is no chunk. Shorter runs are data.
//  2. All else is chunks. A chunk ends at the first of: the splitter's cut, its
//     maximum length, the start of a run by rule 1, the end of the stream. Where
//     several coincide, the first of this list is what its End tells; a cut at
//     exactly the maximum length counts as EndMax.
//  3. The splitter starts anew after every piece. It cuts behind a byte if the
//     chunk is then at least Min long and the last 64 bytes, looked at alone,
//     say so; that happens with probability 2/Avg at each byte of random data.
//     With Min half of Avg, chunks are Avg long in the mean.
//
// So where pieces end depends on the bytes since the previous cut (and, for
// rule 1, on fewer than ZeroRun bytes behind it), and never on how reads or
// buffers happened to fall. This is what lets Cutter.Guess take a chunk over
// from a previous version of a file without looking for cuts.
//
// # Splitters
//
// Rabin is the fingerprint of restic/chunker: Secret is an irreducible
// polynomial of degree 53 and a cut is where the low log2(Avg/2) bits of the
// digest are zero. 64 equal zero bytes have digest zero: behind Min, every run
// of 64 or more zero bytes is a cut. Files of pages with holes of less than
// ZeroRun zero bytes, as databases write them, therefore get chunks that are
// little longer than Min.
//
// Gear adds, for each byte b, the word G[b] to twice the hash (64 bits, so the
// last 64 bytes count, the newer ones more), and cuts where the hash is less
// than 2^64 / (Avg/2). G holds 256 words of the sequence
//
//	w(4i) … w(4i+3) = Derive("cutbank gear table v1", Secret, i), i = 0, 1, …
//
// all numbers 8 bytes, little endian; words whose negative is less than 2^55
// are left out. The hash of a long run of the byte b is -G[b]: what is left
// out are the bytes of which a mere run would be a cut. Gear is several times
// faster than Rabin.
package chunk
