// Package source shows live directories as tree.Nodes: what a snapshot reads.
//
// # Invariants
//
// A symlink is never followed, except in the path that the caller of Open
// wrote. Every system call names one path element relative to the descriptor
// of its directory, so that an element swapped for a symlink is an error and
// not a way out of the tree, and so that trees deeper than PATH_MAX work.
//
// Only what was a regular file is opened, and without blocking: a FIFO or a
// device put in a file's place neither hangs a snapshot nor is read.
//
// Nothing is written; access times stay as they are wherever the kernel allows
// it (O_NOATIME needs the file's owner or CAP_FOWNER).
//
// # Descriptors
//
// A directory's descriptor is opened on demand, relative to its parent's, and
// kept for later use: at most 64 of one tree, plus those that running system
// calls hold. Descriptors are kept only as long as some directory of the tree
// is being iterated over; when the last iteration ends all are closed, so that
// nothing keeps a file system busy that its owner wants to unmount. A walk
// 5,000 levels deep therefore runs with the usual limits, and pays for it by
// opening a directory again now and then. A directory opened again must be the
// one that was opened before (device and inode), else the error is
// syscall.ESTALE.
//
// # Errors
//
// Errors are *fs.PathError. What concerns one child in an iteration has the
// child's name as Path (no slash in it); everything else has the whole path,
// as Open got it, which always has a slash.
//
// The package knows nothing of chunks, repositories or policies: what to leave
// out, which file systems to stay on and what to do about a file that changes
// is up to its caller. It is for the snapshotter, and for tests of everything
// that reads nodes. It is written for Linux.
package source
