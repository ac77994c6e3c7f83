package mount

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
)

const (
	// forever is how long, in seconds, the kernel may keep what never changes.
	forever = 1 << 31

	// blockSize is the unit of statfs, and what stat recommends for reading.
	blockSize = 4096

	nameMax = 255 // bytes in a path element

	// dirSize is what a directory seems to take, as a small one does on most
	// disks: so du(1) comes out as it does in the source.
	dirSize = 4096
)

// typeBits are the file type bits of each kind.
var typeBits = [...]uint32{
	tree.Dir:         syscall.S_IFDIR,
	tree.File:        syscall.S_IFREG,
	tree.Symlink:     syscall.S_IFLNK,
	tree.FIFO:        syscall.S_IFIFO,
	tree.Socket:      syscall.S_IFSOCK,
	tree.CharDevice:  syscall.S_IFCHR,
	tree.BlockDevice: syscall.S_IFBLK,
}

// modeOf returns st_mode. An unknown kind has no type bits, which the kernel
// answers with EIO.
func modeOf(a *tree.Attr) uint32 {
	m := a.Mode & 07777
	if int(a.Kind) < len(typeBits) {
		m |= typeBits[a.Kind]
	}
	return m
}

// fillAttr puts a into the kernel's form.
//
// Directories have a link count of 1, as on btrfs: it means "unknown". Any
// other number n promises n-2 subdirectories, and find(1) and fts(3) would
// then skip looking for more; counting them would read every directory.
func fillAttr(out *fuse.Attr, a *tree.Attr, ino uint64) {
	ctime := a.Ctime
	if ctime == (tree.Time{}) {
		ctime = a.Mtime // a stored node has none
	}
	*out = fuse.Attr{
		Ino:       ino,
		Size:      uint64(max(a.Size, 0)),
		Blocks:    uint64(max(a.Allocated, 0)+511) / 512,
		Atime:     uint64(a.Mtime.Sec),
		Atimensec: a.Mtime.Nsec,
		Mtime:     uint64(a.Mtime.Sec), // two's complement: before 1970 too
		Mtimensec: a.Mtime.Nsec,
		Ctime:     uint64(ctime.Sec),
		Ctimensec: ctime.Nsec,
		Mode:      modeOf(a),
		Nlink:     max(a.Nlink, 1),
		Owner:     fuse.Owner{Uid: a.UID, Gid: a.GID},
		Blksize:   blockSize,
	}
	switch a.Kind {
	case tree.Dir:
		out.Nlink = 1
		out.Size, out.Blocks = dirSize, dirSize/512
	case tree.Symlink:
		out.Size = uint64(len(a.Target))
	case tree.CharDevice, tree.BlockDevice:
		out.Rdev = encodeDev(a.Rdev)
	}
}

// encodeDev turns the C library's 64-bit device number into the kernel's
// 32-bit one (new_encode_dev): 12 bits of major, 20 of minor, which is all
// that Linux itself has.
func encodeDev(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major&0xfff<<8 | minor&0xfff00<<12
}
