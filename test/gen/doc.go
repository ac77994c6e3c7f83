// Package gen writes file trees for tests and benchmarks: one seed, one tree,
// with everything in it that a backup must bring back as it was.
//
// The package never asks for the time or for randomness: every byte, name and
// timestamp follows from Options.Seed and the other options, so that a failure
// is repeated with what the test printed. What the file system or the user
// running the test cannot do (device nodes, trusted attributes) is left out
// and listed in Manifest.Skipped, never silently.
//
// It knows nothing of the packages under test and imports none of them. Only
// tests and bench may import it; it is written for Linux.
package gen
