package restore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// Calls relative to a directory's descriptor. Names given to them have passed
// checkName or come from the kernel's own listing.

const (
	dirFlags  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	pathFlags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	// Without O_NONBLOCK an open would wait for the other end of a FIFO that
	// somebody put where a file was.
	fileFlags = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
)

// checkName refuses what is not one element of a path.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("an empty name is refused")
	case name == "." || name == "..":
		return fmt.Errorf("the name %q is refused: it would leave its directory", name)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("the name %q is refused: it holds a slash or NUL", name)
	case len(name) > 255:
		return fmt.Errorf("a name of %d bytes is refused: file systems allow 255", len(name))
	}
	return nil
}

func openat(fd int, name string, flags int, perm uint32) (int, error) {
	for {
		n, err := unix.Openat(fd, name, flags, perm)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

// inode identifies a file while it is open or linked.
type inode struct{ dev, ino uint64 }

// stat is what the target has.
type stat struct {
	inode
	kind     tree.Kind // 0: a kind we do not know
	mode     uint32    // 07777
	uid, gid uint32
	size     int64
	nlink    uint64
	rdev     uint64
	mtime    tree.Time
	blocks   int64
}

func toStat(s *unix.Stat_t) stat {
	st := stat{
		inode: inode{uint64(s.Dev), s.Ino},
		mode:  uint32(s.Mode) & 0o7777, uid: s.Uid, gid: s.Gid,
		size: s.Size, nlink: uint64(s.Nlink), rdev: uint64(s.Rdev), blocks: s.Blocks,
		mtime: tree.Time{Sec: int64(s.Mtim.Sec), Nsec: uint32(s.Mtim.Nsec)},
	}
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		st.kind = tree.Dir
	case unix.S_IFREG:
		st.kind = tree.File
	case unix.S_IFLNK:
		st.kind = tree.Symlink
	case unix.S_IFIFO:
		st.kind = tree.FIFO
	case unix.S_IFSOCK:
		st.kind = tree.Socket
	case unix.S_IFCHR:
		st.kind = tree.CharDevice
	case unix.S_IFBLK:
		st.kind = tree.BlockDevice
	}
	return st
}

func lstatat(fd int, name string) (stat, error) {
	var s unix.Stat_t
	if err := unix.Fstatat(fd, name, &s, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return stat{}, err
	}
	return toStat(&s), nil
}

// names lists an open directory, sorted bytewise.
func names(fd int) ([]string, error) {
	d, err := openat(fd, ".", dirFlags, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(d), ".")
	defer f.Close()
	ns, err := f.Readdirnames(-1)
	slices.Sort(ns)
	return ns, err
}

// mountOf identifies the mount that name below fd (or fd itself, for "") is
// part of, so that bind mounts of one file system are told apart.
func mountOf(fd int, name string) (uint64, error) {
	var s unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(fd, name, flags, unix.STATX_MNT_ID, &s); err != nil {
		return 0, err
	}
	if s.Mask&unix.STATX_MNT_ID != 0 {
		return s.Mnt_id, nil
	}
	return uint64(s.Dev_major)<<32 | uint64(s.Dev_minor), nil // before Linux 5.8
}

// handle is an open descriptor whose attributes can be read and set, also one
// opened with O_PATH, as symlinks, devices and unreadable files are.
type handle int

func (h handle) close() { unix.Close(int(h)) }

func (h handle) proc() string { return "/proc/self/fd/" + strconv.Itoa(int(h)) }

func (h handle) stat() (stat, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(h), &s); err != nil {
		return stat{}, err
	}
	return toStat(&s), nil
}

func (h handle) chown(uid, gid int) error {
	return unix.Fchownat(int(h), "", uid, gid, unix.AT_EMPTY_PATH)
}

func (h handle) chmod(mode uint32) error {
	err := unix.Fchmod(int(h), mode)
	if err == unix.EBADF {
		err = unix.Chmod(h.proc(), mode)
	}
	return err
}

func (h handle) setMtime(t tree.Time) error {
	if t.Nsec > 999_999_999 {
		return unix.EINVAL // the kernel gives some such values a meaning
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: t.Sec, Nsec: int64(t.Nsec)}}
	err := unix.UtimesNanoAt(int(h), "", ts, unix.AT_EMPTY_PATH)
	if err == unix.ENOENT || err == unix.EINVAL { // before Linux 5.8
		err = unix.UtimesNanoAt(unix.AT_FDCWD, h.proc(), ts, 0)
	}
	return err
}

// readlink returns where the symlink h points.
func (h handle) readlink() (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(h), "", buf)
	return string(buf[:max(n, 0)]), err
}

func (h handle) listXattrs() ([]string, error) {
	var small [256]byte
	buf := small[:]
	for {
		n, err := unix.Flistxattr(int(h), buf)
		if err == unix.EBADF {
			n, err = unix.Listxattr(h.proc(), buf)
		}
		switch {
		case err == unix.ERANGE:
			buf = make([]byte, 64<<10) // the kernel's limit
			continue
		case err == unix.ENOTSUP || err == nil && n == 0:
			return nil, nil
		case err != nil:
			return nil, err
		}
		return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
	}
}

// hasXattr tells whether h has the attribute with exactly this value.
func (h handle) hasXattr(name string, value []byte) bool {
	buf := make([]byte, len(value)+1)
	n, err := unix.Fgetxattr(int(h), name, buf)
	if err == unix.EBADF {
		n, err = unix.Getxattr(h.proc(), name, buf)
	}
	return err == nil && n == len(value) && bytes.Equal(buf[:n], value)
}

func (h handle) setXattr(name string, value []byte) error {
	err := unix.Fsetxattr(int(h), name, value, 0)
	if err == unix.EBADF {
		err = unix.Setxattr(h.proc(), name, value, 0)
	}
	return err
}

func (h handle) removeXattr(name string) error {
	err := unix.Fremovexattr(int(h), name)
	if err == unix.EBADF {
		err = unix.Removexattr(h.proc(), name)
	}
	if err == unix.ENODATA {
		return nil
	}
	return err
}

// lockTemp takes the lock that tells a live temporary file from a leftover.
func lockTemp(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }

func pwriteAll(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// preadAll fills p, or fails; the end of the file is io.ErrUnexpectedEOF.
func preadAll(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// dataFrom returns the first range at or after off, and before end, for which
// the file has storage; from == end says that there is none.
func dataFrom(fd int, off, end int64) (from, to int64) {
	from, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO || err == nil && from >= end:
		return end, end
	case err != nil: // a file system that does not tell: all is data
		return off, end
	}
	to, err = unix.Seek(fd, from, unix.SEEK_HOLE)
	if err != nil || to > end {
		to = end
	}
	return from, to
}

// copyRange copies the data of [0, n) from one file to another that has none,
// holes staying holes, in the kernel where it can.
func copyRange(dst, src int, n int64, buf []byte) error {
	for off := int64(0); off < n; {
		from, to := dataFrom(src, off, n)
		for from < to {
			ro, wo := from, from
			c, err := unix.CopyFileRange(src, &ro, dst, &wo, int(min(to-from, 1<<30)), 0)
			if err != nil || c == 0 {
				if err == unix.ENOSPC || err == unix.EDQUOT {
					return err
				}
				c = int(min(to-from, int64(len(buf))))
				if err := preadAll(src, buf[:c], from); err != nil {
					return err
				}
				if err := pwriteAll(dst, buf[:c], from); err != nil {
					return err
				}
			}
			from += int64(c)
		}
		off = to
	}
	return nil
}

// openDirPath opens the directory at path below root, element by element,
// following nothing; flags are for the last one. "" is root itself.
func openDirPath(root int, path string, flags int) (int, error) {
	fd, err := dup(root)
	if err != nil {
		return fd, err
	}
	for path != "" {
		name, rest, _ := strings.Cut(path, "/")
		path = rest
		how := unix.O_PATH
		if rest == "" {
			how = flags
		}
		next, err := openat(fd, name, how|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

// isTemp tells whether name is one of ours: ".cutbank-", 16 hexadecimal
// digits, ".tmp".
func isTemp(name string) bool {
	mid, ok := strings.CutPrefix(name, tempPrefix)
	if !ok {
		return false
	}
	mid, ok = strings.CutSuffix(mid, tempSuffix)
	return ok && len(mid) == 16 && strings.Trim(mid, "0123456789abcdef") == ""
}

const (
	tempPrefix = ".cutbank-"
	tempSuffix = ".tmp"
)
