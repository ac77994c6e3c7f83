// Package local is the Backend in a folder of a file system, of this machine or
// of the network.
//
// An object is the file of its name below the folder, mode 0600, in directories
// of mode 0700. It appears all at once, and only after its bytes are on the disk;
// Put returns after its directory entry is, too. Until then it is in tmp/, under
// a name that no object can have. So a crash at any moment leaves whole objects
// and perhaps something in tmp/, which Sweep removes. Another file there,
// tmp/reserve~, keeps a mebibyte free for when the disk is full.
//
// The package never changes or replaces an object that is there, never writes
// outside its folder, and creates nothing when it is only read from. Where the
// folder was a repository and is empty all at once, its file system is not mounted
// any more: all calls then say so, and nothing counts as absent.
//
// # Create-if-absent
//
// What decides who has a name is, in this order, what the file system has:
//
//  1. link(2). It fails where the name is taken, on NFS and SMB by the server's
//     word. An answer that was lost (NFS repeats a call, and finds its own) is made
//     up for by looking which file has the name.
//  2. renameat2(2) with RENAME_NOREPLACE, on disks of this machine only, such as
//     exFAT: elsewhere the flag may end at this machine's cache.
//  3. rename(2) of a directory. No system moves a directory to the name of one
//     that is not empty, nor of a file. The object "a/b" is then the directory a/b
//     with its bytes in a/b/content~, which is there, whole, before the directory
//     gets its name. Its removal is that of content~; an empty directory is no
//     object, and in nobody's way. There is no claim that somebody who stops for
//     ever could hold, and nothing that somebody who wakes up could undo.
//
// Only names that several clients may put need that: config/<n>, keys/<id>.<n>,
// writers/<id>-<n>, snapshots/<id>, marks/<id>-<n>, condemned/<id>.<n>,
// forgotten/<id>, parity/<pack>; those whose names are random and put by one
// client alone are packs/ and index/ (backend.PutOnce), which are plain files
// everywhere: where neither 1 nor 2 is there they are looked for, and renamed.
// All else in a repository is few, and treated like the first.
//
// The forms keep each other out and all are read everywhere. But directories are
// only made where config/ has them too, that is where init found no other way: a
// program that does not know them would prune what they need. So a repository
// that is moved to where there are no links is read there, and not written.
//
// Where not even a directory can be moved, Put says backend.ErrUnfenced. `cutbank
// init --no-fencing` then looks first, and renames.
//
// # File systems of the network
//
// Clients of NFS and SMB keep what they have seen of a directory for a while (Lag).
// That is told by the type of the file system: 120 s for NFS, SMB, 9p, AFS, Coda,
// BeeGFS, the shared folders of virtual machines, FUSE, and whatever is unknown and
// has no block device; none for CephFS, Lustre, GPFS, OCFS2 and GFS2, whose caches
// are coherent, and for disks, also those that a FUSE program reads. Who is told
// that a name is taken can read it: Put waits until a cache that says otherwise
// has noticed, at most as long as Lag.
//
// Mount NFS hard (the default; soft turns a slow server into errors), with actimeo
// or acdirmax of at most 60 s, with or without sync: all is synced that must be.
// No locks are used, so nolock does no harm; nor does noac, which is only slow. SMB
// needs nothing special; cache=none and actimeo=0 are only slow. 9p must not be
// mounted with cache=loose or fscache, nor rclone and the like without writing
// through, where several machines use one repository: those never look again. A
// FUSE file system in front of an object store moves no directory at once; use the
// store itself. The server must keep what was synced: an export with async loses
// what was acknowledged when the server loses power. Root that is squashed makes
// files that belong to nobody in particular; the folder must be the squashed
// user's. FAT and exFAT hold no more than 65,534 (FAT) or 2,796,202 (exFAT) files
// in a directory, which packs/<xx>/ stays far below.
//
// What such file systems make by themselves (.nfs*, .fuse_hidden*, .snapshot) is no
// object, and no object gets such a name.
package local
