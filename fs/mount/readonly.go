package mount

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The kernel refuses writes to a read-only mount itself. Root can remount it
// writable, and then these answers count: without them it would be ENOSYS.
const erofs = fuse.Status(syscall.EROFS)

func (ops) SetAttr(<-chan struct{}, *fuse.SetAttrIn, *fuse.AttrOut) fuse.Status { return erofs }
func (ops) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return erofs
}
func (ops) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return erofs
}
func (ops) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return erofs }
func (ops) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status  { return erofs }
func (ops) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return erofs
}
func (ops) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return erofs
}
func (ops) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return erofs
}
func (ops) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return erofs
}
func (ops) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return erofs
}
func (ops) SetXAttr(<-chan struct{}, *fuse.SetXAttrIn, string, []byte) fuse.Status {
	return erofs
}
func (ops) RemoveXAttr(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return erofs }
func (ops) Write(<-chan struct{}, *fuse.WriteIn, []byte) (uint32, fuse.Status) {
	return 0, erofs
}
func (ops) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, erofs
}
func (ops) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status { return erofs }
func (ops) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, erofs
}

// Ioctl knows no request; to say so must not switch all of them off.
func (ops) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(syscall.ENOTTY)
}
