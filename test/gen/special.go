package gen

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kinds makes one of each kind of node, and the empty ones.
func (w *writer) kinds() {
	w.dir("kinds")
	w.file("kinds/file", w.fill(5000, text))
	w.file("kinds/empty-file", nil)
	w.dir("kinds/empty-dir")
	w.node("kinds/fifo", unix.S_IFIFO|0o640, 0)
	w.node("kinds/socket", unix.S_IFSOCK|0o600, 0)
	if w.rootOnly("device nodes") {
		w.node("kinds/null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3))
		w.node("kinds/char-large", unix.S_IFCHR|0o600, unix.Mkdev(4095, 1048575))
		w.node("kinds/block", unix.S_IFBLK|0o660, unix.Mkdev(259, 300000))
		w.node("kinds/block-zero", unix.S_IFBLK, unix.Mkdev(0, 0))
	}
	w.symlink("kinds/symlink", "file")
	w.symlink("kinds/symlink-to-dir", "empty-dir")
	w.symlink("kinds/symlink-up", "../kinds/../kinds/file")
	w.symlink("kinds/symlink-loop", "symlink-loop")
	w.symlink("kinds/symlink-dangling", "nothing/here")
	w.symlink("kinds/symlink-absolute", "/etc/passwd")
	w.symlink("kinds/symlink-odd", "a\nb\xff\xfe \t\\ '\"")
	w.symlink("kinds/symlink-slashes", ".//.///file")
	w.symlink("kinds/symlink-4000", strings.Repeat("long-name/", 399)+"0123456789")
	w.symlink("kinds/symlink-4095", strings.Repeat("x", 4095))
}

// names makes names that programs stumble over.
func (w *writer) names() {
	w.dir("names")
	for i, name := range []string{
		" leading", "trailing ", "-dash", "--delete", "-", " ", "~", "#hash", "*", "?", "[a]", "{a,b}", "!", "$HOME", "`id`",
		"back\\slash", "quote\"'", "new\nline", "\n", "tab\t", "bell\a\x1b[31m", "\x01", "\x7f", "...", ".hidden", "..x",
		"\xff\xfe", "latin-\xe4", "cut-\xe2\x82", "\xed\xa0\x80", "umlaut-\u00e4", "umlaut-a\u0308", "\u202egpj", "\u4e2d\u6587", "\U0001f30a",
		"a", "A", "a.b", "a-b", "a0", "a:b", "con", "NUL.txt", strings.Repeat("n", 255), strings.Repeat("\xff", 255),
		strings.Repeat("\u4e2d", 85),
	} {
		// "a" as a directory beside "a.b" and "a-b": the order of paths is
		// not that of names.
		if name == "a" || i%11 == 10 {
			w.dir("names/" + name)
			w.file("names/"+name+"/"+name, w.fill(20, text))
			continue
		}
		w.file("names/"+name, w.fill(i, text))
	}
}

// modes makes permission bits and owners of all sorts.
func (w *writer) modes() {
	w.dir("modes")
	for _, mode := range []uint32{0o000, 0o111, 0o200, 0o400, 0o444, 0o600, 0o640, 0o666, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6711, 0o7777} {
		if mode&0o400 == 0 && !w.opt.Root {
			continue // nobody else could read it back
		}
		rel := fmt.Sprintf("modes/file-%04o", mode)
		w.file(rel, w.fill(10, text))
		w.chmod(rel, mode)
		if mode&0o500 == 0o500 || w.opt.Root {
			rel = fmt.Sprintf("modes/dir-%04o", mode)
			w.dir(rel)
			w.chmod(rel, mode)
		}
	}
	if !w.rootOnly("owners") {
		return
	}
	for _, id := range [][2]int{{0, 1}, {1, 0}, {1000, 1000}, {65534, 65534}, {65536, 70000}, {4000000000, 4294967294}} {
		rel := fmt.Sprintf("modes/owner-%d-%d", id[0], id[1])
		w.file(rel, w.fill(10, text))
		w.lchown(rel, id)
		w.chmod(rel, 0o6755) // after chown, which clears these bits
		w.dir(rel + "-dir")
		w.lchown(rel+"-dir", id)
		w.symlink(rel+"-link", "target")
		w.lchown(rel+"-link", id)
	}
	w.lchown("kinds/fifo", [2]int{1000, 1001})
}

func (w *writer) chmod(rel string, mode uint32) {
	if w.err == nil {
		w.check(unix.Chmod(w.path(rel), mode))
	}
}

func (w *writer) lchown(rel string, id [2]int) {
	if w.err == nil {
		w.try("owner of "+rel, os.Lchown(w.path(rel), id[0], id[1]))
	}
}

// times makes modification times before, at and far from 1970. File systems
// clamp what they cannot hold.
func (w *writer) times() {
	w.dir("times")
	for _, t := range []struct {
		name string
		at   time.Time
	}{
		{"epoch", time.Unix(0, 0)}, {"one-ns", time.Unix(0, 1)}, {"before-ns", time.Unix(0, -1)},
		{"before-s", time.Unix(-1, 0)}, {"1938", time.Unix(-1e9, 999999999)}, {"1902", time.Unix(-2147483648, 1)},
		{"2001", time.Unix(1e9, 123456789)}, {"2038", time.Unix(2147483648, 0)}, {"2106", time.Unix(4294967296, 5)},
		{"2400", time.Date(2400, 2, 29, 23, 59, 59, 999999999, time.UTC)},
	} {
		w.file("times/"+t.name, nil)
		w.symlink("times/"+t.name+"-link", "x")
		if w.err != nil {
			return
		}
		w.check(setTime(w.path("times/"+t.name), t.at))
		w.check(setTime(w.path("times/"+t.name+"-link"), t.at))
		w.dir("times/" + t.name + "-dir")
		w.dirs[len(w.dirs)-1].at = t.at
	}
}

// xattrs makes extended attributes, ACLs and capabilities included.
func (w *writer) xattrs() {
	w.dir("xattrs")
	add := func(rel, name string, value []byte) {
		if w.err == nil {
			w.try(name+" on "+rel, unix.Lsetxattr(w.path(rel), name, value, 0))
		}
	}
	w.file("xattrs/user", w.fill(100, text))
	add("xattrs/user", "user.note", []byte("hello"))
	add("xattrs/user", "user.empty", nil)
	add("xattrs/user", "user.bytes", []byte("\x00\xff\n"))
	add("xattrs/user", "user.\xc3\xa4 odd=name", []byte("x"))
	w.file("xattrs/large", w.fill(100, text))
	add("xattrs/large", "user.large", appendContent(nil, w.rng, 3000, random))
	w.file("xattrs/many", nil)
	for i := range 40 {
		add("xattrs/many", fmt.Sprintf("user.number%02d", i), fmt.Appendf(nil, "value %d", i))
	}
	w.dir("xattrs/dir")
	add("xattrs/dir", "user.dir", []byte("a directory's"))
	w.file("xattrs/acl", w.fill(100, text))
	add("xattrs/acl", "system.posix_acl_access", ACL(6, 7, 4, 0, 1000, 2000))
	w.dir("xattrs/acl-dir")
	// The file comes before the default ACL, which it would inherit.
	w.file("xattrs/acl-dir/file", nil)
	add("xattrs/acl-dir", "system.posix_acl_access", ACL(7, 5, 5, 0, 1000, 70000))
	add("xattrs/acl-dir", "system.posix_acl_default", ACL(7, 5, 4, 0, 1000, 70000))
	if !w.rootOnly("trusted.* and security.*") {
		return
	}
	add("xattrs/user", "trusted.note", []byte("for root only"))
	w.symlink("xattrs/symlink", "user")
	add("xattrs/symlink", "trusted.link", []byte("a symlink's"))
	w.node("xattrs/fifo", unix.S_IFIFO|0o600, 0)
	add("xattrs/fifo", "trusted.fifo", []byte("a pipe's"))
	w.file("xattrs/capability", w.fill(100, random))
	w.chmod("xattrs/capability", 0o755)
	add("xattrs/capability", "security.capability", capability(1<<10|1<<13)) // bind low ports, raw sockets
}

// ACL encodes a POSIX ACL as Linux's system.posix_acl_* attributes hold it:
// the permissions (0 to 7) of owner, mask, group and others, and a named user
// and a named group with read permission.
func ACL(owner, mask, group, other uint16, uid, gid uint32) []byte {
	const undefined = 0xffffffff
	p := binary.LittleEndian.AppendUint32(nil, 2) // version
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{
		{0x01, owner, undefined}, {0x02, 4, uid}, {0x04, group, undefined},
		{0x08, 4, gid}, {0x10, mask, undefined}, {0x20, other, undefined},
	} {
		p = binary.LittleEndian.AppendUint16(p, e.tag)
		p = binary.LittleEndian.AppendUint16(p, e.perm)
		p = binary.LittleEndian.AppendUint32(p, e.id)
	}
	return p
}

// capability encodes a set of permitted and effective capabilities as revision
// 2 of security.capability.
func capability(set uint32) []byte {
	p := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	for _, v := range []uint32{set, 0, 0, 0} { // permitted, inheritable, and their upper halves
		p = binary.LittleEndian.AppendUint32(p, v)
	}
	return p
}

// links makes hard links, within a directory, across, of odd kinds, and one
// file with many names.
func (w *writer) links() {
	for _, dir := range []string{"links", "links/a", "links/b", "links/b/c"} {
		w.dir(dir)
	}
	w.file("links/a/pair", w.fill(200_000, random))
	w.hardlink("links/a/pair", "links/a/pair-too")
	w.file("links/b/across", w.fill(3000, text))
	w.hardlink("links/b/across", "links/a/across") // sorts before the first name
	w.hardlink("links/b/across", "links/b/c/across")
	w.file("links/twin", []byte("same contents, another file"))
	w.file("links/twin2", []byte("same contents, another file"))
	w.file("links/empty", nil)
	w.hardlink("links/empty", "links/empty-too")
	for i := range 50 {
		if i == 0 {
			w.file("links/many0", w.fill(70_000, text))
			continue
		}
		w.hardlink("links/many0", fmt.Sprintf("links/many%d", i))
	}
	w.symlink("links/symlink", "twin")
	w.hardlink("links/symlink", "links/symlink-too")
	if w.err == nil {
		fifo := w.m.Specials
		w.node("links/fifo", unix.S_IFIFO|0o600, 0)
		if w.m.Specials > fifo {
			w.hardlink("links/fifo", "links/fifo-too")
		}
	}
}

// piece is a run of bytes at an offset of a sparse file.
type piece struct {
	off, n int64
	zero   bool // zeros, written
}

// sparse makes files with holes, with zeros that are none, and with runs of
// zeros around the length from which they are stored as such.
func (w *writer) sparse() {
	w.dir("sparse")
	const k = 1 << 10
	for _, f := range []struct {
		name   string
		size   int64
		pieces []piece
	}{
		{"hole-start", 300 * k, []piece{{off: 200 * k, n: 100 * k}}},
		{"hole-middle", 600 * k, []piece{{off: 0, n: 100 * k}, {off: 400 * k, n: 200 * k}}},
		{"hole-end", 300 * k, []piece{{off: 0, n: 100 * k}}},
		{"hole-all", 1 << 20, nil},
		{"hole-one-byte", 1, nil},
		{"hole-odd-size", 1<<20 + 777, []piece{{off: 512 * k, n: 5000}}},
		{"hole-many", 2 << 20, pieces(32, 64*k, 4*k)},
		{"zeros-all", 200 * k, []piece{{off: 0, n: 200 * k, zero: true}}},
		{"zeros-beside-hole", 400 * k, []piece{{off: 0, n: 100 * k, zero: true}, {off: 200 * k, n: 100 * k}, {off: 300 * k, n: 100 * k, zero: true}}},
		{"zeros-one-byte", 1, []piece{{off: 0, n: 1, zero: true}}},
	} {
		w.fileFunc("sparse/"+f.name, func(o *os.File) error {
			if err := o.Truncate(f.size); err != nil {
				return err
			}
			return w.writePieces(o, f.pieces)
		})
	}
	for _, run := range []int{4095, 4096, 4097, 8191, 8192, 65536} {
		for _, at := range []int{0, 1, 4095, 70001} {
			p := w.fill(200_000, random)
			clear(p[at : at+run])
			w.file(fmt.Sprintf("sparse/run-%d-at-%d", run, at), p)
		}
		p := w.fill(100_000, random)
		clear(p[len(p)-run:])
		w.file(fmt.Sprintf("sparse/run-%d-at-end", run), p)
	}
	if w.opt.BigSparse {
		w.fileFunc("sparse/big", func(o *os.File) error {
			const size = 6 << 30
			if err := o.Truncate(size); err != nil {
				return err
			}
			return w.writePieces(o, []piece{{off: 12345, n: 64 * k}, {off: 4<<30 - 1000, n: 2000}, {off: size - 4096, n: 4096}})
		})
	}
}

// pieces returns n pieces of data, every so many bytes.
func pieces(n int, every, length int64) []piece {
	list := make([]piece, n)
	for i := range list {
		list[i] = piece{off: int64(i) * every, n: length}
	}
	return list
}

func (w *writer) writePieces(o *os.File, list []piece) error {
	for _, p := range list {
		b := w.fill(int(p.n), random)
		if p.zero {
			clear(b)
		}
		if _, err := o.WriteAt(b, p.off); err != nil {
			return err
		}
	}
	return nil
}

// sizes makes files of lengths around which chunks, pages and frames begin.
func (w *writer) sizes() {
	w.dir("sizes")
	const k = 1 << 10
	for i, n := range []int{
		1, 2, 4095, 4096, 4097, 8191, 8192, 32*k - 1, 32 * k, 32*k + 1, 64*k - 1, 64 * k, 64*k + 1, 128 * k,
		256*k - 1, 256 * k, 256*k + 1, 512*k - 1, 512 * k, 512*k + 1, 1 << 20, 3<<20 + 12345, 6 << 20,
	} {
		kind := content(i % int(duplicate))
		w.file(fmt.Sprintf("sizes/%d.%s", n, kind), w.fill(n, kind))
	}
}
