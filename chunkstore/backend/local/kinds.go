package local

import (
	"time"

	"golang.org/x/sys/unix"
)

// networkLag is how long file systems of the network may answer from a cache of
// their own. NFS keeps attributes of directories, and that a name is not there,
// up to 60 s (acdirmax); SMB servers and clients, and what comes by FUSE, less by
// default. It is twice the longest, for what was asked just before.
const networkLag = 120 * time.Second

// kind is what is known of a type of file system.
type kind struct {
	lag   time.Duration
	alone bool // one machine at a time has it, whose kernel sees all that changes
}

var (
	onThisMachine = kind{alone: true}
	coherent      = kind{}                // many machines, locks or tokens between them
	cached        = kind{lag: networkLag} // many machines, each with a cache of its own
)

// kinds are the types of file systems, as statfs(2) numbers them, that need no
// block device on this machine.
var kinds = map[uint32]kind{
	unix.TMPFS_MAGIC:           onThisMachine,
	unix.RAMFS_MAGIC:           onThisMachine,
	unix.BTRFS_SUPER_MAGIC:     onThisMachine,
	unix.OVERLAYFS_SUPER_MAGIC: onThisMachine,
	unix.ECRYPTFS_SUPER_MAGIC:  onThisMachine,
	0x2fc12fc1:                 onThisMachine, // ZFS
	0xca451a4e:                 onThisMachine, // bcachefs

	0x00c36400: coherent, // CephFS: capabilities, which are recalled first
	0x0bd00bd0: coherent, // Lustre: locks of its servers
	0x47504653: coherent, // GPFS: tokens

	unix.NFS_SUPER_MAGIC:  cached,
	unix.SMB_SUPER_MAGIC:  cached,
	unix.SMB2_SUPER_MAGIC: cached,
	unix.CIFS_SUPER_MAGIC: cached,
	unix.FUSE_SUPER_MAGIC: cached, // nobody can tell what is behind it
	unix.V9FS_MAGIC:       cached, // by how it is mounted
	unix.AFS_SUPER_MAGIC:  cached, // promises that a server breaks when it gets through
	unix.AFS_FS_MAGIC:     cached,
	unix.CODA_SUPER_MAGIC: cached,
	0x19830326:            cached, // BeeGFS
	0x786f4256:            cached, // VirtualBox
	0xbacbacbc:            cached, // VMware
}

// clustered are the types on block devices that several machines have at once.
var clustered = map[uint32]kind{
	0x7461636f: coherent, // OCFS2: cluster locks
	0x01161970: coherent, // GFS2: cluster locks
}

// kindOf tells a file system by its type, and the device of a file in it. What
// has a block device of this machine is a disk, also where a FUSE program reads
// it; what is unknown and has none is taken for one of the network.
func kindOf(magic uint32, dev uint64) kind {
	if unix.Major(dev) != 0 {
		if k, ok := clustered[magic]; ok {
			return k
		}
		return onThisMachine
	}
	if k, ok := kinds[magic]; ok {
		return k
	}
	return cached
}
