package backendtest

import (
	"context"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// FolderFaults is what a file system lacks or does wrong. An errno of zero is
// none. It may be changed while nobody uses the file system.
type FolderFaults struct {
	Link       syscall.Errno // what link(2) is refused with
	RenameFlag syscall.Errno // what renames with a flag are refused with
	RenameDir  syscall.Errno // what renames of directories are refused with
	ForgetFlag bool          // flags of a rename are passed over

	LinkDone, RenameDone syscall.Errno // the answer to links and renames that were done
	Flush, Fsync         syscall.Errno // what close(2) and fsync(2) of files come to

	// Lag is how long this mount answers from its caches: that a name is there
	// or is not, what a file is like, and what a directory holds. What is
	// changed by this mount itself is seen by it at once.
	Lag time.Duration
}

// MountFolder mounts the folder dir with those faults, and returns where. Two
// mounts of one folder are like two machines. A test that cannot have it is
// skipped, or fails where CUTBANK_REQUIRE names fuse.
func MountFolder(t testing.TB, dir string, faults *FolderFaults) string {
	t.Helper()
	mnt := t.TempDir()
	unmount, err := ServeFolder(dir, mnt, faults)
	if err != nil {
		for _, s := range strings.Split(os.Getenv("CUTBANK_REQUIRE"), ",") {
			if s == "fuse" {
				t.Fatal(err)
			}
		}
		t.Skip("SKIPPED: this test mounts by FUSE: ", err)
	}
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	return mnt
}

// ServeFolder mounts the folder dir at mnt with those faults.
func ServeFolder(dir, mnt string, faults *FolderFaults) (unmount func() error, err error) {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return nil, err
	}
	data := &fs.LoopbackRoot{Path: dir, Dev: st.Dev}
	root := &folderNode{LoopbackNode: &fs.LoopbackNode{RootData: data}, faults: faults}
	data.RootNode = root
	server, err := fs.Mount(mnt, root, &fs.Options{
		EntryTimeout: &faults.Lag, AttrTimeout: &faults.Lag, NegativeTimeout: &faults.Lag, NullPermissions: true,
		MountOptions: fuse.MountOptions{Name: "faulty", FsName: dir, DisableReadDirPlus: true, DirectMount: os.Geteuid() == 0},
	})
	if err != nil {
		return nil, err
	}
	return server.Unmount, nil
}

// folderNode is a file or directory of such a file system.
type folderNode struct {
	*fs.LoopbackNode
	faults *FolderFaults

	mu     sync.Mutex
	listed time.Time // when entries was read
	list   []fuse.DirEntry
}

func (n *folderNode) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &folderNode{LoopbackNode: ops.(*fs.LoopbackNode), faults: n.faults}
}

// changed makes the next listing see what this mount has done.
func (n *folderNode) changed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = nil
}

func (n *folderNode) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.list == nil || time.Since(n.listed) >= n.faults.Lag {
		stream, errno := n.LoopbackNode.Readdir(ctx)
		if errno != 0 {
			return nil, 0, errno
		}
		defer stream.Close()
		n.listed, n.list = time.Now(), []fuse.DirEntry{}
		for stream.HasNext() {
			e, errno := stream.Next()
			if errno != 0 {
				n.list = nil
				return nil, 0, errno
			}
			n.list = append(n.list, e)
		}
	}
	return &folderList{DirStream: fs.NewListDirStream(n.list)}, 0, 0
}

// folderList is an open directory.
type folderList struct{ fs.DirStream }

func (l *folderList) Readdirent(context.Context) (*fuse.DirEntry, syscall.Errno) {
	if !l.HasNext() {
		return nil, 0
	}
	e, errno := l.Next()
	return &e, errno
}

func (n *folderNode) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if n.faults.Link != 0 {
		return nil, n.faults.Link
	}
	defer n.changed()
	inode, errno := n.LoopbackNode.Link(ctx, target, name, out)
	if errno == 0 {
		errno = n.faults.LinkDone
	}
	return inode, errno
}

func (n *folderNode) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	child := n.GetChild(name)
	isDir := child != nil && child.IsDir()
	switch {
	case flags != 0 && n.faults.RenameFlag != 0:
		return n.faults.RenameFlag
	case isDir && n.faults.RenameDir != 0:
		return n.faults.RenameDir
	case n.faults.ForgetFlag:
		flags = 0
	}
	to, ok := parent.(*folderNode)
	if !ok {
		return syscall.EXDEV
	}
	defer n.changed()
	defer to.changed()
	errno := n.LoopbackNode.Rename(ctx, name, parent, newName, flags)
	if errno == 0 && n.faults.RenameDone != 0 {
		n.MvChild(name, to.EmbeddedInode(), newName, true)
		errno = n.faults.RenameDone
	}
	return errno
}

func (n *folderNode) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	defer n.changed()
	return n.LoopbackNode.Mkdir(ctx, name, mode, out)
}

func (n *folderNode) Rmdir(ctx context.Context, name string) syscall.Errno {
	defer n.changed()
	return n.LoopbackNode.Rmdir(ctx, name)
}

func (n *folderNode) Unlink(ctx context.Context, name string) syscall.Errno {
	defer n.changed()
	return n.LoopbackNode.Unlink(ctx, name)
}

func (n *folderNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	defer n.changed()
	inode, fh, flags, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if lf, ok := fh.(*fs.LoopbackFile); ok {
		fh = &folderFile{lf, n.faults}
	}
	return inode, fh, flags, errno
}

// folderFile is a file that is being written.
type folderFile struct {
	*fs.LoopbackFile
	faults *FolderFaults
}

func (f *folderFile) Flush(ctx context.Context) syscall.Errno {
	if f.faults.Flush != 0 {
		return f.faults.Flush
	}
	return f.LoopbackFile.Flush(ctx)
}

func (f *folderFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	if f.faults.Fsync != 0 {
		return f.faults.Fsync
	}
	return f.LoopbackFile.Fsync(ctx, flags)
}
