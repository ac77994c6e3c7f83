// Package restore writes a tree.Node into a directory, as rsync would: it
// changes what differs and leaves the rest alone.
//
// It is one of the ways out. It knows trees and chunk IDs only: a stored
// snapshot, a live directory and a test's tree are restored by the same code.
// It runs on Linux.
//
// # Never outside the target
//
// Neither what a snapshot holds nor what the target holds, before or while
// the restore runs, makes it write outside the target:
//
//   - An entry's name is one path element or the entry is refused.
//   - The target's own path is the caller's word and may contain symbolic
//     links. Below it every directory is opened relative to its parent's
//     descriptor with O_NOFOLLOW, and all work in it is relative to its own
//     descriptor. A symbolic link where a directory is wanted is replaced, or
//     refused if the policy says so, and never followed.
//   - Attributes are set through descriptors of what was opened and looked
//     at, not through names.
//   - A file with more names than the snapshot gives it may be known outside
//     the target. It is neither written in place nor given other attributes;
//     a new file takes the name.
//   - Deleting stays on the file system (the mount) of the named root.
//
// A process that may rename directories of the target can still carry one
// away, with what is being written into it, to where it may write itself.
//
// # What a file goes through
//
// Contents go to a new file of mode 0600 named .cutbank-<16 digits>.tmp in
// the same directory. It then gets, in this order, its owner (which clears
// setuid and capabilities), its extended attributes with ACLs and
// capabilities, its mode, and its times, and is renamed to its name. So
// setuid never stands beside a foreign owner, and a reader sees the old file
// or the new one. The digits come from name, size and time: after a kill the
// next run finds the file and continues in it; what no file of the snapshot
// wants any more is removed. Temporary files of a run that still lives are
// locked (flock) and left alone. Cancelling removes those that are being written.
//
// Directories are opened to their owner while they are filled, and get their
// final attributes when everything below them is done.
//
// InPlace writes differing ranges straight into an existing file: no second
// copy on disk, but also a mixed file if the restore is stopped within it.
// Such a file has a new time, so the next run looks into it again.
//
// # Power
//
// A file that replaces another is synced before it takes its name: after a
// power cut there is the old one or the new one. Files that replace nothing
// are not synced one by one (new files of 8 KiB on ext4, a virtual disk: 5,400
// a second, the sync at the end included, and 2,300 when each is synced); the
// whole file system is synced once at the end, before the receipt is closed. A power cut before that may leave such files short or missing.
// The next run sees that by their size, as ext4, XFS and btrfs write a file's
// size after its data; files with holes, whose size is set first, are
// therefore synced too. Where the file system promises less, run again with
// Verify. A closed receipt says that everything is on the disk.
//
// # Owners
//
// Owners are numbers; no name is looked up. Only root can give files away: if
// the effective user is not root, what owner or group cannot be set is left
// as the system chose it, without an error, as rsync does, and then the file
// gets no setuid or setgid bit that would mean somebody else. The same holds
// for attributes of the namespaces trusted and security.
//
// # Damage
//
// A file with a part that was left out (syscall.ENODATA), that is lost
// (syscall.EIO) or that cannot be read is not restored and named in the
// error; the other files are. A directory whose listing is damaged is
// restored as far as it can be read, and nothing is deleted in it.
//
// # Memory
//
// One directory's names at a time along the path that is being walked, one
// buffer per worker, and one record per hard-linked file until its last name
// was seen. One descriptor per level of depth stays open, and up to some 512 for
// names that wait for workers: four for each worker and, with Ahead, 2,048 more.
//
// Who may use it: cmd/cutbank, the rooms of systems that restore, and tests.
package restore
