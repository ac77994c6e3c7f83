// Command versus runs cutbank beside other backup tools on one tree and prints
// time, memory and size with the ratio to cutbank's. `make bench` runs it; the
// README of the folder above tells how to read what it prints.
//
// A measurement counts only if the step did its work: snapshots are counted by
// the tool's own list, a restored or mounted tree must hold as many files,
// directories, links and bytes as the source, and a verify that reads data must
// notice a flipped byte. What fails is printed as failed, never as fast.
//
// Within a run the tools take turns step by step, so that a machine that is slow
// for a minute is slow for all; ratios are taken within a run, then the median.
//
// Everything happens in one temporary folder, which is removed at the end, on
// Ctrl-C and on failure; so are mounts and processes. How the tools are run is in
// package tool. The source tree is a copy.
//
// What the program never does: import cutbank's packages, or another tool's; what
// changes the tree is that of the tests.
package main
