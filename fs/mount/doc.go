// Package mount shows stored trees as a read-only FUSE file system.
//
// It turns tree.Nodes into answers to the kernel, and nothing else: what a
// node is, where its bytes come from and how they are decoded ahead is the
// business of whoever hands the nodes in. It is the only package that knows
// go-fuse; of this module it imports repo/tree and chunkstore/chunk. The
// command line mounts with it, and nobody else needs it.
//
// # What is shown
//
//	<name>/<time>/            the root of a snapshot
//	<name>/latest             symlink to the newest time of that name
//	ids/<id>                  symlink to ../<name>/<time>
//	tags/<tag>/<name>/<time>  symlink to ../../../<name>/<time>
//
// These upper directories are live: Update changes them while the mount is in
// use. A snapshot's root has one place only, because the kernel moves a
// directory that it meets under a second parent. With Options.Root the mount
// is that one tree and has no upper directories.
//
// # How it is fast
//
// The kernel does the repeating work. What is stored never changes, so
// names, attributes, absent names, listings, link targets and contents may be
// cached for ever, and Open, OpenDir and Flush are answered with ENOSYS, after
// which the kernel sends them no more. What remains is LOOKUP, READDIRPLUS and
// READ, each once. Contents of small files are pushed into the page cache
// ahead of who reads a directory in order (push.go); where the snapshots are far
// away, only once two were read in order.
//
// # Identity
//
// A node ID is slot<<40 | number: the slot counts the snapshots that this
// mount has shown, the number is tree.Numbered's. It needs no table, so FORGET
// is empty and a mount of a million files keeps no memory for them; a bounded
// cache of recent nodes only saves looking them up again. Slot 0 holds the
// upper directories. No ID is used twice while the mount lives. The inode
// number shown to users is alike, with 23 bits of a hash of the snapshot's ID
// instead of the slot, so that it is the same after mounting again.
//
// # Invariants
//
//   - Damage is EIO, never ENOENT, and never a short read: the kernel would
//     take that for the end of the file.
//   - ENOSYS is never the answer to an operation that any node supports: it
//     switches the operation off for the whole mount, for ever.
//   - No lock that a handler takes is held while the kernel is notified, and
//     no handler waits for a goroutine that notifies: the kernel holds locks
//     while it waits for handlers, and takes the same locks in notifications.
//   - Handlers of the upper directories never wait for a snapshot to be
//     opened, so one slow snapshot delays nobody else.
//   - Everything that would write is EROFS.
package mount
