// Command remote runs cutbank beside other backup tools on a server that answers
// late, and prints how many requests each step takes, how many bytes, and how
// long. `make remote` runs it; the README of the folder above tells how to read
// what it prints.
//
// The server is versitygw on this machine, or any that speaks S3. Each tool has a
// proxy of its own in front of it, which holds up every request for some time,
// and counts. Bytes pass at full speed: the server is far away, the line is wide.
//
// A measurement counts only if the step did its work: what is restored, and what
// tar reads through a mount, must be the source byte by byte; snapshots are
// counted by the tool's own list. What fails is printed as failed, never as fast.
//
// Everything on this machine happens in one temporary folder, which is removed at
// the end, on Ctrl-C and on failure; so are mounts and processes.
//
// What the program never does: import cutbank's packages, or another tool's; and
// connect to anything but the server.
package main
