// Package tool runs cutbank and other backup tools, all in the same way: what
// each is asked for a step, its processes, its mounts, what they take, and what
// the trees hold that come out of them. Two programs need it, versus and remote.
//
// Tools get an environment of their own: nothing of the user's settings, caches
// or repositories is read or written. Processes run in groups of their own, which
// end with the context that they were given; a mount ends with End, by force if
// it must, and nothing stays mounted.
//
// The package never imports cutbank's packages, nor another tool's: it knows
// their commands only. It is written for Linux.
package tool
