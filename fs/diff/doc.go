// Package diff compares two file trees, live or stored, and yields what
// differs between them.
//
// It walks both trees side by side in the order of their names, holding one
// pair of directories per level and one entry for each file with several
// names; it never holds a list of a whole tree. The same trees and options
// give the same changes in the same order. Nothing is written, and nothing is
// read that attributes, chunk IDs or the identity of a whole directory already
// answer.
//
// What cannot be read is never reported as equal, and never as removed: it is
// an error with its path, and the walk goes on. Contents that a snapshot has left
// out on purpose are compared by their size alone.
//
// Commands (diff, verify against a directory) and tests use it; it knows
// repo/tree and chunk IDs, and no repository.
package diff
