package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// zoo has one node of every sort.
func zoo() *memNode {
	hard := fileNode("hard1", 5000, 11)
	hard.attr.Nlink = 2
	again := fileNode("hard2", 5000, 11)
	again.attr = hard.attr
	again.attr.Name, again.first = "hard2", hard

	suid := fileNode("suid", 100, 12)
	suid.attr.Mode, suid.attr.UID, suid.attr.GID = 0o6755, 1234, 4321
	sticky := dirNode("sticky")
	sticky.attr.Mode = 0o1777
	old := fileNode("old", 1, 13)
	old.attr.Mtime = tree.Time{Sec: -86400*365*100 - 1, Nsec: 999999999}
	live := fileNode("ctime", 1, 14)
	live.attr.Ctime = tree.Time{Sec: 42, Nsec: 43}

	const GiB = 1 << 30
	sparse := fileNode("sparse", 5*GiB+1, 15)
	sparse.attr.Allocated = 3 * 65536
	sparse.extents = []tree.Extent{
		{Off: 0, Len: 65536, Kind: tree.Data},
		{Off: 65536, Len: 4*GiB - 65536, Kind: tree.Hole},
		{Off: 4 * GiB, Len: 65536, Kind: tree.Data},
		{Off: 4*GiB + 65536, Len: 65536, Kind: tree.Zero},
		{Off: 4*GiB + 131072, Len: GiB + 1 - 131072, Kind: tree.Hole},
	}
	xattrs := fileNode("xattrs", 10, 16)
	xattrs.xattrs = []tree.Xattr{
		{Name: "security.capability", Value: []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
		{Name: "trusted.secret", Value: []byte("t")},
		{Name: "user.empty", Value: nil},
		{Name: "user.note", Value: []byte("h\x00i\xff")},
	}
	acl := fileNode("acl", 10, 17)
	acl.attr.Mode = 0o660 // with an ACL the group bits hold the mask
	acl.xattrs = []tree.Xattr{{Name: "system.posix_acl_access", Value: aclValue(1001, 4)}}

	return dirNode("",
		hard, again, suid, sticky, old, live, sparse, xattrs, acl,
		fileNode("empty", 0, 0), dirNode("emptydir"), fileNode("big", 3<<20+17, 18),
		linkNode("link", "emptydir"), linkNode("dangling", "no/such\xff\nplace"),
		specialNode("fifo", tree.FIFO, 0), specialNode("sock", tree.Socket, 0),
		specialNode("blk", tree.BlockDevice, unix.Mkdev(259, 300000)), specialNode("chr", tree.CharDevice, unix.Mkdev(1, 3)),
		fileNode("bytes\xff\xfe", 3, 19), fileNode("new\nline", 3, 20), fileNode(strings.Repeat("n", 255), 3, 21),
		dirNode("deep", dirNode("a", dirNode("b", dirNode("c", fileNode("leaf", 7, 22))))),
	)
}

// aclValue encodes an ACL that gives one more user some permissions.
func aclValue(uid uint32, perm uint16) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, perm, uid}, {4, 0, ^uint32(0)}, {16, 6, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		b = append(b, byte(e.tag), 0, byte(e.perm), 0, byte(e.id), byte(e.id>>8), byte(e.id>>16), byte(e.id>>24))
	}
	return b
}

func TestAttributes(t *testing.T) {
	z := zoo()
	zt := newMemTree(z)
	_, dir := mountTest(t, Options{Root: zt.root})
	var mnt unix.Stat_t
	if err := unix.Lstat(dir, &mnt); err != nil {
		t.Fatal(err)
	}
	inos := map[uint64]string{}
	var check func(n *memNode, p string)
	check = func(n *memNode, p string) {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			t.Errorf("%q: %v", p, err)
			return
		}
		a := &n.attr
		want := unix.Stat_t{
			Mode: modeOf(a), Uid: a.UID, Gid: a.GID, Nlink: uint64(a.Nlink), Size: a.Size, Blocks: (a.Allocated + 511) / 512,
			Mtim: unix.Timespec{Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}, Rdev: a.Rdev,
		}
		want.Ctim = want.Mtim
		if a.Ctime != (tree.Time{}) {
			want.Ctim = unix.Timespec{Sec: a.Ctime.Sec, Nsec: int64(a.Ctime.Nsec)}
		}
		if a.Kind == tree.Dir {
			want.Nlink, want.Size, want.Blocks = 1, 4096, 8
		}
		got := unix.Stat_t{
			Mode: st.Mode, Uid: st.Uid, Gid: st.Gid, Nlink: uint64(st.Nlink), Size: st.Size, Blocks: st.Blocks, Mtim: st.Mtim, Ctim: st.Ctim, Rdev: st.Rdev,
		}
		if got != want {
			t.Errorf("%q:\n got %+v\nwant %+v", p, got, want)
		}
		name := fmt.Sprint(n.number)
		if was, ok := inos[st.Ino]; ok && was != name || st.Ino == 0 {
			t.Errorf("%q: inode %d is that of node %s", p, st.Ino, was)
		}
		inos[st.Ino] = name
		if a.Kind == tree.Symlink {
			if target, err := os.Readlink(p); err != nil || target != a.Target {
				t.Errorf("readlink %q = %q, %v", p, target, err)
			}
		}
		if a.Kind == tree.File && a.Size < 1<<22 && (os.Geteuid() == 0 || a.Mode&0o004 != 0) {
			want := make([]byte, a.Size)
			fillBytes(want, n.seed, 0)
			if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, want) {
				t.Errorf("contents of %q: %v", p, err)
			}
		}
		for _, c := range n.children {
			check(c, p+"/"+c.attr.Name)
		}
	}
	check(z, dir)
	if err := unix.Lstat(filepath.Join(dir, strings.Repeat("x", 256)), &mnt); err != unix.ENAMETOOLONG {
		t.Errorf("a name of 256 bytes: %v", err)
	}
	if err := unix.Lstat(filepath.Join(dir, "absent"), &mnt); err != unix.ENOENT {
		t.Errorf("an absent name: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(z.children) {
		t.Fatalf("the listing has %d names, want %d: %v", len(entries), len(z.children), err)
	}
	for i, e := range entries {
		if e.Name() != z.children[i].attr.Name {
			t.Errorf("name %d is %q, want %q", i, e.Name(), z.children[i].attr.Name)
		}
	}
	single := 0
	for _, n := range zt.nodes {
		if n.attr.Kind == tree.File && n.attr.Nlink == 1 {
			single++
		}
	}
	if n := strings.Count(run(t, "find", dir, "-type", "f", "-links", "1", "-print0"), "\x00"); n != single {
		t.Errorf("find sees %d files with one link, want %d", n, single)
	}
}

// TestSubdirectory mounts a part of a snapshot: its root has another number
// than 0, and a hard link's first name lies outside.
func TestSubdirectory(t *testing.T) {
	first := fileNode("first", 5000, 1)
	first.attr.Nlink = 2
	again := fileNode("again", 5000, 1)
	again.attr.Nlink, again.first = 2, first
	sub := dirNode("sub", again, fileNode("other", 6000, 2), dirNode("d", fileNode("leaf", 7, 3)))
	newMemTree(dirNode("", dirNode("a", first), sub))
	s, dir := mountTest(t, Options{Root: sub})
	for range 2 {
		if out := run(t, "sh", "-c", `cd "$1" && ls && cat again other d/leaf | wc -c`, "sh", dir); out != "again\nd\nother\n11007\n" {
			t.Errorf("%q", out)
		}
	}
	s.Update([]Snapshot{snapshotOf("aa", "web", day1, zoo())})
	if _, err := os.Stat(filepath.Join(dir, "web")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a mount of one tree shows another snapshot: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil || st.Ino != s.fixed.inoOf(sub.number) {
		t.Errorf("the root's inode is %d, %v", st.Ino, err)
	}
}

// TestNodesAreFoundAgain: the kernel's node IDs outlive the cache of nodes,
// and one that leads nowhere is damage, not absence.
func TestNodesAreFoundAgain(t *testing.T) {
	s := newServer("/nowhere", Options{PushBytes: -1})
	defer s.end()
	mt := newMemTree(zoo())
	sl := &slot{num: 7, snap: snapshotOf("aa", "n", day1, zoo())}
	var root tree.Numbered = mt.root
	sl.root.Store(&root)
	s.top.Store(&top{slots: map[uint64]*slot{7: sl}})
	for _, n := range mt.nodes {
		k, err := s.node(t.Context(), sl.idOf(n.number))
		if err != nil || k.node.Attr().Size != n.attr.Size {
			t.Errorf("node %d: %+v, %v", n.number, k, err)
		}
	}
	if _, err := s.node(t.Context(), sl.idOf(1e6)); errnoOf(err) != syscall.EIO {
		t.Errorf("a number that is not there: %v", err)
	}
	if _, err := s.node(t.Context(), sl.idOf(0)+1<<numberBits); errnoOf(err) != syscall.ESTALE {
		t.Errorf("a snapshot that is not there: %v", err)
	}
}

func TestInodeNumbersStayTheSame(t *testing.T) {
	var first string
	for i := range 2 {
		s, dir := mountTest(t, Options{})
		var snaps []Snapshot
		for j := range 3 {
			snaps = append(snaps, snapshotOf(fmt.Sprintf("ab%02d", j), "n", fmt.Sprintf("2026-11-2%dT10.00.00Z", j), zoo(), "tag"))
		}
		if i == 1 { // another order, as another run may find it
			snaps[0], snaps[2] = snaps[2], snaps[0]
		}
		s.Update(snaps)
		out := run(t, "sh", "-c", `cd "$1" && find . -printf '%i %y %P\0' | sort -z`, "sh", dir)
		if first == "" {
			first = out
		} else if out != first {
			t.Error("inode numbers differ in the second mount")
		}
		if err := s.Unmount(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestXattrs(t *testing.T) {
	_, dir := mountTest(t, Options{Root: newMemTree(zoo()).root, AllowOther: os.Geteuid() == 0})
	p := filepath.Join(dir, "xattrs")
	buf := make([]byte, 100)
	for _, tt := range []struct {
		path, name string
		size       int
		want       string
		err        error
	}{
		{p, "user.note", 100, "h\x00i\xff", nil},
		{p, "user.note", 4, "h\x00i\xff", nil},
		{p, "user.note", 3, "", unix.ERANGE},
		{p, "user.empty", 100, "", nil},
		{p, "user.absent", 100, "", unix.ENODATA},
		{filepath.Join(dir, "big"), "user.note", 100, "", unix.ENODATA},
		{filepath.Join(dir, "big"), "system.posix_acl_access", 100, "", unix.ENODATA},
		{filepath.Join(dir, "acl"), "system.posix_acl_access", 100, string(aclValue(1001, 4)), nil},
	} {
		n, err := unix.Lgetxattr(tt.path, tt.name, buf[:tt.size])
		if err != tt.err || err == nil && string(buf[:n]) != tt.want {
			t.Errorf("getxattr %s into %d bytes = %q, %v", tt.name, tt.size, buf[:max(n, 0)], err)
		}
	}
	if n, err := unix.Lgetxattr(p, "user.note", nil); n != 4 || err != nil {
		t.Errorf("size of user.note = %d, %v", n, err)
	}
	names := "security.capability\x00trusted.secret\x00user.empty\x00user.note\x00"
	if os.Geteuid() != 0 {
		names = strings.Replace(names, "trusted.secret\x00", "", 1)
	}
	if n, err := unix.Llistxattr(p, nil); n != len(names) || err != nil {
		t.Errorf("size of the list = %d, %v", n, err)
	}
	if n, err := unix.Llistxattr(p, buf); err != nil || string(buf[:n]) != names {
		t.Errorf("list = %q, %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Llistxattr(p, buf[:5]); err != unix.ERANGE {
		t.Errorf("list into 5 bytes: %v", err)
	}
}

// TestOtherUsers looks at the mount as somebody who is neither root nor owner.
func TestOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		lack(t, "fuse", "only root can become another user")
	}
	requireTool(t, "setpriv")
	requireTool(t, "getfattr")
	_, dir := mountTest(t, Options{Root: newMemTree(zoo()).root, AllowOther: true})
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755) // fails, as it should, for what is mounted
	}
	as := func(uid string, args ...string) (string, error) {
		return try("setpriv", append([]string{"--reuid", uid, "--regid", uid, "--clear-groups", "--"}, args...)...)
	}
	if out, err := as("1001", "getfattr", "--absolute-names", "-m", "-", filepath.Join(dir, "xattrs")); err != nil || strings.Contains(out, "trusted") || !strings.Contains(out, "user.note") {
		t.Errorf("the xattrs of a user: %v\n%s", err, out)
	}
	for uid, allowed := range map[string]bool{"1001": true, "1002": false} {
		if out, err := as(uid, "cat", filepath.Join(dir, "acl")); (err == nil) != allowed {
			t.Errorf("user %s reads a file whose ACL allows 1001: %v\n%s", uid, err, out)
		}
	}
}

func TestSeek(t *testing.T) {
	_, dir := mountTest(t, Options{Root: newMemTree(zoo()).root})
	const GiB = 1 << 30
	for _, tt := range []struct {
		name   string
		off    int64
		whence int
		want   int64
		err    error
	}{
		{"sparse", 0, unix.SEEK_DATA, 0, nil},
		{"sparse", 0, unix.SEEK_HOLE, 65536, nil},
		{"sparse", 70000, unix.SEEK_HOLE, 70000, nil},
		{"sparse", 65536, unix.SEEK_DATA, 4 * GiB, nil},
		{"sparse", 4*GiB + 70000, unix.SEEK_DATA, 4*GiB + 70000, nil},
		{"sparse", 4 * GiB, unix.SEEK_HOLE, 4*GiB + 131072, nil},
		{"sparse", 4*GiB + 131072, unix.SEEK_DATA, 0, unix.ENXIO},
		{"sparse", 5*GiB + 1, unix.SEEK_HOLE, 0, unix.ENXIO},
		{"big", 5, unix.SEEK_HOLE, 3<<20 + 17, nil},
		{"big", 5, unix.SEEK_DATA, 5, nil},
		{"empty", 0, unix.SEEK_DATA, 0, unix.ENXIO},
		{"big", 0, unix.SEEK_END, 3<<20 + 17, nil},
	} {
		f, err := os.Open(filepath.Join(dir, tt.name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := unix.Seek(int(f.Fd()), tt.off, tt.whence)
		if err != tt.err || err == nil && got != tt.want {
			t.Errorf("lseek %s %d %d = %d, %v; want %d, %v", tt.name, tt.off, tt.whence, got, err, tt.want, tt.err)
		}
		f.Close()
	}
	p := make([]byte, 9)
	want := make([]byte, 9)
	fillBytes(want[1:], 15, 4*GiB)
	f, err := os.Open(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(p, 4*GiB-1); err != nil || !bytes.Equal(p, want) {
		t.Errorf("over the end of a hole: %x, %v; want %x", p, err, want)
	}
}

func TestReadOnly(t *testing.T) {
	_, dir := mountTest(t, Options{Root: newMemTree(zoo()).root})
	writes := map[string]string{
		"touch": "touch big", "create": "touch new", "mkdir": "mkdir new", "rm": "rm -f big", "rmdir": "rmdir emptydir",
		"mv": "mv big bigger", "ln": "ln big bigger", "symlink": "ln -s big bigger", "chmod": "chmod 600 big", "truncate": "truncate -s 0 big",
		"write": "dd if=/dev/zero of=big bs=512 count=1 conv=notrunc", "mkfifo": "mkfifo new",
	}
	expect := func(t *testing.T) {
		for name, cmd := range writes {
			out, err := try("sh", "-c", "cd '"+dir+"' && "+cmd)
			if err == nil || !strings.Contains(out, "Read-only file system") {
				t.Errorf("%s: %v, %s", name, err, out)
			}
		}
	}
	expect(t)
	if os.Geteuid() == 0 {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			t.Log("not remounted writable:", err)
			return
		}
		t.Run("remounted writable", expect)
	}
}

func TestBigDirectory(t *testing.T) {
	const names = 100_000
	root := dirNode("")
	for i := range names {
		root.children = append(root.children, fileNode(fmt.Sprintf("name%06d", i), 1, uint64(i)))
	}
	s, dir := mountTest(t, Options{Root: newMemTree(root).root})
	for range 2 {
		if n := strings.Count(run(t, "ls", "-U", dir), "\n"); n != names {
			t.Fatalf("ls shows %d names", n)
		}
	}
	if n := strings.Count(run(t, "find", dir, "-type", "f", "-size", "1c"), "\n"); n != names {
		t.Errorf("find shows %d files", n)
	}
	st := s.Stats()
	if st.Lookups > 100 || st.GetAttrs > 100 {
		t.Errorf("READDIRPLUS must do the LOOKUPs and GETATTRs: %+v", st)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Readdirnames(50_000); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if all, err := d.Readdirnames(-1); len(all) != names || err != nil {
		t.Errorf("after rewinding: %d names, %v", len(all), err)
	}
}

func TestStatfs(t *testing.T) {
	_, dir := mountTest(t, Options{FSName: "/some, place", Statfs: func() (uint64, uint64) { return 4096*10 + 1, 77 }})
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks != 11 || st.Files != 77 || st.Bfree != 0 || st.Namelen != 255 || st.Bsize != 4096 {
		t.Errorf("%+v", st)
	}
	if want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV); st.Flags&want != want {
		t.Errorf("flags %#x lack some of %#x", st.Flags, want)
	}
}

// TestDamage: one damaged file and one damaged entry give EIO, are logged
// once, and the rest can be read.
func TestDamage(t *testing.T) {
	var log logLines
	bad := fileNode("bad", 5000, 1)
	bad.readErr = &os.PathError{Op: "read", Path: "sub/bad", Err: errDamage}
	lost := fileNode("lost", 1, 1)
	lost.findErr = errDamage
	sub := dirNode("sub", fileNode("a", 5000, 2), bad, fileNode("c", 5000, 3), lost, fileNode("z", 5000, 4))
	s, dir := mountTest(t, Options{Root: newMemTree(dirNode("", sub)).root, Logf: log.add})
	p := filepath.Join(dir, "sub")
	for range 2 {
		out := run(t, "ls", "-U", p)
		if out != "a\nbad\nc\nlost\nz\n" {
			t.Errorf("the listing is %q", out)
		}
		for _, name := range []string{"bad", "lost"} {
			if out, err := try("cat", filepath.Join(p, name)); err == nil || !strings.Contains(out, "Input/output error") {
				t.Errorf("%s: %v %s", name, err, out)
			}
		}
		for _, name := range []string{"a", "c", "z"} {
			if out := run(t, "cat", filepath.Join(p, name)); len(out) != 5000 {
				t.Errorf("%s: %d bytes", name, len(out))
			}
		}
	}
	lines := log.all()
	if strings.Count(lines, "sub/bad") != 1 || strings.Count("\n"+lines, "\nlost: ") != 1 || s.Stats().Damaged != 2 {
		t.Errorf("logged:\n%s", lines)
	}
	if st := s.Stats(); st.PushedFiles > 3 {
		t.Errorf("%d files pushed", st.PushedFiles)
	}
}

func TestShortFileIsDamage(t *testing.T) {
	n := &shortNode{memNode: newMemTree(dirNode("", fileNode("f", 100, 1))).nodes[1]}
	p := make([]byte, 200)
	if got, err := readFull(t.Context(), n, p, 0); err == nil {
		t.Errorf("a file shorter than its size reads %d bytes without an error", got)
	}
	if got, err := readFull(t.Context(), n, p, 100); got != 0 || err != nil {
		t.Errorf("at the end: %d, %v", got, err)
	}
}

// shortNode ends before its size.
type shortNode struct{ *memNode }

func (n *shortNode) ReadAt(ctx ctxType, p []byte, off int64) (int, error) {
	got, _ := n.memNode.ReadAt(ctx, p[:50], off)
	return got, io.EOF
}

func TestEncodeDev(t *testing.T) {
	for _, tt := range []struct{ major, minor, want uint32 }{
		{1, 3, 0x103}, {8, 17, 0x811}, {259, 300000, 0x49303e0 | 259<<8&0xfff00 | 300000&0xff | 300000&0xfff00<<12}, {0xfff, 0xfffff, 0xffffffff},
	} {
		got := encodeDev(unix.Mkdev(tt.major, tt.minor))
		if major, minor := got&0xfff00>>8, got&0xff|got>>12&0xfff00; major != tt.major || minor != tt.minor {
			t.Errorf("%d:%d encodes to %#x, which the kernel reads as %d:%d", tt.major, tt.minor, got, major, minor)
		}
	}
}

func TestDirectoryThatEndsInAnError(t *testing.T) {
	// An error that ends the sequence is the directory's: EIO, not the end.
	last := fileNode("zzz", 1, 1)
	last.findErr = errDamage
	_, dir := mountTest(t, Options{Root: newMemTree(dirNode("", fileNode("a", 1, 1), last)).root})
	out, err := try("ls", "-U", dir)
	if err == nil || !strings.HasPrefix(out, "a\n") && !strings.Contains(out, "\na\n") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestFillAttrBounds(t *testing.T) {
	var out fuse.Attr
	fillAttr(&out, &tree.Attr{Kind: 99, Size: -1, Allocated: -1}, 5)
	if out.Size != 0 || out.Blocks != 0 || out.Mode&syscall.S_IFMT != 0 || out.Nlink != 1 {
		t.Errorf("%+v", out)
	}
}
