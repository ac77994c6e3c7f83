package tree

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// Kind is what a node is. The values are part of the stored format.
type Kind uint8

const (
	Dir         Kind = 1
	File        Kind = 2
	Symlink     Kind = 3
	FIFO        Kind = 4
	Socket      Kind = 5
	CharDevice  Kind = 6
	BlockDevice Kind = 7
)

var kindNames = [...]string{Dir: "dir", File: "file", Symlink: "symlink", FIFO: "fifo", Socket: "socket", CharDevice: "chardev", BlockDevice: "blockdev"}

func (k Kind) String() string {
	if k >= Dir && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Time is a point in time as file systems keep it: seconds since 1970 (before
// it: negative) and nanoseconds, 0 to 999,999,999, counted forward.
type Time struct {
	Sec  int64
	Nsec uint32
}

// TimeOf converts a time.Time.
func TimeOf(t time.Time) Time { return Time{t.Unix(), uint32(t.Nanosecond())} }

// Time converts to a time.Time in UTC.
func (t Time) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }

// Compare returns -1, 0 or 1 as t is before, equal to or after u.
func (t Time) Compare(u Time) int {
	switch {
	case t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec:
		return -1
	case t == u:
		return 0
	}
	return 1
}

// Attr is what is known of a node without reading it.
type Attr struct {
	Name      string // the last path element, any bytes but '/' and NUL; a root's is empty
	Kind      Kind
	Mode      uint32 // permission bits with setuid, setgid and sticky: 07777
	UID, GID  uint32
	Mtime     Time
	Size      int64  // a file's bytes, a link target's length; 0 for all else
	Allocated int64  // bytes that a file's data takes on disk: st_blocks * 512; of a stored file what is no hole, in blocks of 4096
	Target    string // where a symlink points, any bytes
	Rdev      uint64 // a device's number, as Linux's makedev encodes it

	// Changed marks a file that changed while it was read, each time it was
	// tried: its contents may mix two states.
	Changed bool

	// Nlink is how many names the file had where it was read, in the snapshot
	// or outside it. Names with equal Dev and Ino and Nlink > 1 are one file.
	// Dev, Ino and Ctime tell where a live node lives; a stored node has Dev
	// 0, a number unique in its snapshot as Ino, and no Ctime.
	Nlink    uint32
	Dev, Ino uint64
	Ctime    Time
}

// Xattr is one extended attribute, POSIX ACLs and file capabilities included.
type Xattr struct {
	Name  string // with its namespace: "user.note", "security.capability"
	Value []byte
}

// Node is a file, directory or link, live or stored. Nodes are safe for
// concurrent use. Errors are *fs.PathError where a path is known; a damaged
// stored node gives chunk.ErrCorrupt or chunk.ErrMissing.
type Node interface {
	// Attr returns the node's attributes; nobody may change them.
	Attr() *Attr

	// Xattrs returns the extended attributes sorted by name. It is apart from
	// Attr because an unchanged file must not cost a system call, and a large
	// stored attribute not a read. The values are not to be changed.
	Xattrs(ctx context.Context) ([]Xattr, error)

	// Lookup returns the child of that name. No such child is
	// fs.ErrNotExist; a node that is no directory is syscall.ENOTDIR.
	Lookup(ctx context.Context, name string) (Node, error)

	// Entries yields a directory's children sorted by name, bytewise, from
	// the from-th on (the first is 0). A child that cannot be read is yielded
	// as an error of its own, *fs.PathError with the child's name as Path,
	// and the sequence goes on unless the directory itself failed.
	Entries(ctx context.Context, from int64) iter.Seq2[Node, error]

	// ReadAt reads a file's contents like io.ReaderAt: fewer than len(p)
	// bytes come with an error, io.EOF at the end. Holes read as zeros, an
	// absent extent is syscall.ENODATA, a lost one syscall.EIO.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// ExtentKind tells what is behind a range of a file. The values are part of
// the stored format.
type ExtentKind uint8

const (
	Data   ExtentKind = 1 // bytes: a chunk of a stored file, anything of a live one
	Zero   ExtentKind = 2 // zeros that were written as data
	Hole   ExtentKind = 3 // nothing was ever written: reads as zeros
	Absent ExtentKind = 4 // left out on purpose (dataless snapshots)
	Lost   ExtentKind = 5 // was damaged beyond repair
)

// End tells why an extent ended where it did. Only what ended by the splitter
// or at the maximum may be guessed again from a previous recipe. The values
// are part of the stored format.
type End uint8

const (
	EndFile     End = 0 // at the end of the file
	EndSplitter End = 1 // the splitter cut
	EndMax      End = 2 // the chunk was as long as chunks may be
	EndZero     End = 3 // a run of zeros began or ended
	EndSource   End = 4 // the source said so: a hole began or ended
	EndRecord   End = 5 // the source said so: a record ended
)

// BySource reports whether the source said that the extent ends there.
func (e End) BySource() bool { return e == EndSource || e == EndRecord }

// Extent is a range of a file. Extents of a file follow each other without a
// gap, from 0 to its size.
type Extent struct {
	Off, Len int64
	Kind     ExtentKind
	End      End
	ID       chunk.ID // of a stored file's Data; zero for a live file
}

// Extenter is a file Node that knows what is behind its ranges: stored files
// their chunks, live files their holes.
type Extenter interface {
	// Extents yields the extents from the one that holds off on.
	Extents(ctx context.Context, off int64) iter.Seq2[Extent, error]
}

// Opener is a live file Node. Its ReadAt opens the file anew each time; who
// reads more than once opens it.
type Opener interface {
	Open(ctx context.Context) (OpenFile, error)
}

// OpenFile is an open live file.
type OpenFile interface {
	io.ReaderAt
	io.Closer
	// Stat returns the attributes as they are now, to see a change.
	Stat() (*Attr, error)
	// Extents yields Data and Hole ranges from off on, as the file system
	// tells them (SEEK_DATA, SEEK_HOLE). Other sources than file systems may
	// leave ranges out (Absent), and end a range of Data with EndRecord
	// where they want a chunk to end.
	Extents(off int64) iter.Seq2[Extent, error]
}

// Numbered is a Node of a stored snapshot. Its number is its place when the
// snapshot is listed in preorder, the root being 0; hard links have the number
// of the first of their names. So node numbers need no table.
type Numbered interface {
	Node
	Number() uint64
	// ByNumber returns the node of that number in the same snapshot.
	ByNumber(ctx context.Context, n uint64) (Node, error)
}

// Placed is a Numbered node that knows where it is listed: as the index-th of
// its parent's entries, from 0 on. A root is listed nowhere: its parent is nil.
type Placed interface {
	Place() (parent Numbered, index int64)
}

// Totals counts what is below and including a node.
type Totals struct {
	Nodes uint64 `json:"nodes"` // names: files, directories and all else
	Files uint64 `json:"files"` // names of regular files
	Dirs  uint64 `json:"dirs"`
	Bytes uint64 `json:"bytes"` // sum of the sizes of regular files, each name counted
}

// Totaler is a Node that knows its totals without a walk.
type Totaler interface{ Totals() Totals }
