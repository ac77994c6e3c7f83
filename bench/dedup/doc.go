// Package dedup measures how well data deduplicates: several ways of cutting,
// side by side, in one pass that reads every file once. It needs no repository
// and writes nothing.
//
// Its cutting is that of package chunk, so its numbers are what a repository
// with the same parameters would store, but for the metadata. It compresses
// with whatever function it is given.
//
// # Memory
//
// A column remembers the chunks that it has seen by the first 8 bytes of their
// hash, exactly, up to Options.Distinct of them. From then on it samples: it
// remembers only hashes below a threshold, and halves that whenever the memory
// is full again. A chunk whose hash is below the threshold p (as a share of all
// hashes) and that was not seen before counts 1/p times. This estimate of the
// distinct chunks is unbiased, because the threshold depends on earlier chunks
// only, and a new chunk's hash on none of them; its variance is at most the sum
// of (1-p)/p² · length² over the chunks counted, from which Result.Error is
// reckoned (E. Cohen, "All-distances sketches, revisited: HIP estimators", PODS
// 2014). Chunks counted before sampling began add no error.
package dedup
