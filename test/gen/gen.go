package gen

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what to write. The zero value is a tree of some 5,000 names and
// 40 MB, of seed 0, with what only root can make left out.
type Options struct {
	Seed      uint64
	Files     int   // ordinary files below data/; 0: 300, negative: none
	Bytes     int64 // their sizes together, about; 0: 8 MiB
	Wide      int   // names in the directory wide/; 0: 2,000, negative: none
	Deep      int   // levels below deep/; 0: 60, negative: none; beyond 400 few tools follow
	BigSparse bool  // a file of 6 GiB with three blocks of data in it
	Root      bool  // owners, device nodes, trusted.* and security.*
}

// Default returns the options that most tests want: those of a seed, with what
// root can make if the process is root.
func Default(seed uint64) Options { return Options{Seed: seed, Root: os.Geteuid() == 0} }

// Manifest tells what was written.
type Manifest struct {
	Dirs     int   // directories, the root included
	Files    int   // regular files, each inode once
	Links    int   // further names of these files
	Symlinks int   //
	Specials int   // FIFOs, sockets, device nodes
	Bytes    int64 // the sizes of the regular files, each inode once
	// Skipped says what was asked for and could not be made, one line each.
	Skipped []string
}

// Names is how many nodes a walk sees.
func (m *Manifest) Names() int { return m.Dirs + m.Files + m.Links + m.Symlinks + m.Specials }

// Epoch is the moment that generated times lie around.
var Epoch = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// writer writes one tree. Methods that fail keep the first error; those after
// it do nothing, so that the lists of odd things read as lists.
type writer struct {
	root string
	opt  Options
	rng  *rand.Rand
	m    Manifest
	err  error
	dirs []dirTime // set last, as every new name in a directory moves its time
	blob []byte    // reused to make contents
}

type dirTime struct {
	path string
	at   time.Time
}

// Tree writes a tree into dir, which is made if missing and must be empty.
func Tree(dir string, opt Options) (Manifest, error) {
	opt.Files = orDefault(opt.Files, 300)
	opt.Wide = orDefault(opt.Wide, 2000)
	opt.Deep = orDefault(opt.Deep, 60)
	if opt.Bytes <= 0 {
		opt.Bytes = 8 << 20
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Manifest{}, err
	}
	switch list, err := os.ReadDir(dir); {
	case err != nil:
		return Manifest{}, err
	case len(list) > 0:
		return Manifest{}, fmt.Errorf("%s is not empty: give a directory of its own", dir)
	}
	w := &writer{root: dir, opt: opt, rng: rand.New(rand.NewPCG(opt.Seed, 0xc07ba7c))}
	w.m.Dirs = 1
	w.dirs = append(w.dirs, dirTime{dir, w.time()})
	for _, step := range []func(){
		w.kinds, w.names, w.modes, w.times, w.xattrs, w.links, w.sparse, w.sizes, w.deep, w.wide, w.data,
	} {
		step()
	}
	for _, d := range slices.Backward(w.dirs) {
		w.check(setTime(d.path, d.at))
	}
	return w.m, w.err
}

func orDefault(n, def int) int {
	switch {
	case n < 0:
		return 0
	case n == 0:
		return def
	}
	return n
}

func (w *writer) check(err error) bool {
	if w.err == nil {
		w.err = err
	}
	return w.err == nil
}

// try is check for what the system may not allow: that is noted, and the tree
// goes without it.
func (w *writer) try(what string, err error) bool {
	for _, e := range []error{unix.EPERM, unix.ENOTSUP, unix.ENOSYS, unix.EINVAL, unix.ENOSPC, unix.E2BIG} {
		if errors.Is(err, e) {
			w.m.Skipped = append(w.m.Skipped, what+": "+err.Error())
			return false
		}
	}
	return w.check(err)
}

// rootOnly reports whether w may make what needs root, and notes it if not.
func (w *writer) rootOnly(what string) bool {
	if !w.opt.Root {
		w.m.Skipped = append(w.m.Skipped, what+": needs root")
	}
	return w.opt.Root
}

func (w *writer) path(rel string) string { return w.root + "/" + rel }

// time returns a moment within a year before Epoch, to the nanosecond.
func (w *writer) time() time.Time {
	return Epoch.Add(-time.Duration(w.rng.Int64N(int64(365 * 24 * time.Hour))))
}

func setTime(path string, at time.Time) error {
	ts := unix.Timespec{Sec: at.Unix(), Nsec: int64(at.Nanosecond())}
	err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "utimes", Path: path, Err: err}
	}
	return nil
}

// dir makes a directory.
func (w *writer) dir(rel string) {
	if w.err != nil || !w.check(os.Mkdir(w.path(rel), 0o755)) {
		return
	}
	w.check(os.Chmod(w.path(rel), 0o755)) // whatever the umask is
	w.m.Dirs++
	w.dirs = append(w.dirs, dirTime{w.path(rel), w.time()})
}

// file makes a regular file of the mode 0644.
func (w *writer) file(rel string, content []byte) {
	w.fileFunc(rel, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// fileFunc makes a regular file that fill writes.
func (w *writer) fileFunc(rel string, fill func(*os.File) error) {
	if w.err != nil {
		return
	}
	path := w.path(rel)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if !w.check(err) {
		return
	}
	w.check(fill(f))
	info, err := f.Stat()
	w.check(err)
	w.check(f.Chmod(0o644))
	w.check(f.Close())
	w.check(setTime(path, w.time()))
	w.m.Files++
	if w.err == nil {
		w.m.Bytes += info.Size()
	}
}

func (w *writer) symlink(rel, target string) {
	if w.err != nil || !w.check(os.Symlink(target, w.path(rel))) {
		return
	}
	w.check(setTime(w.path(rel), w.time()))
	w.m.Symlinks++
}

// hardlink gives a file one name more.
func (w *writer) hardlink(old, rel string) {
	if w.err == nil && w.check(os.Link(w.path(old), w.path(rel))) {
		w.m.Links++
	}
}

// node makes a FIFO, socket or device node.
func (w *writer) node(rel string, mode uint32, rdev uint64) {
	if w.err != nil {
		return
	}
	path := w.path(rel)
	if !w.try("node "+rel, unix.Mknod(path, mode, int(rdev))) {
		return
	}
	w.check(os.Chmod(path, os.FileMode(mode&0o777)))
	w.check(setTime(path, w.time()))
	w.m.Specials++
}

// fill returns n bytes from the seed, valid until the next call.
func (w *writer) fill(n int, kind content) []byte {
	w.blob = appendContent(w.blob[:0], w.rng, n, kind)
	return w.blob
}

// deep makes a chain of directories by descriptors, so that it may be longer
// than PATH_MAX.
func (w *writer) deep() {
	w.dir("deep")
	if w.err != nil || w.opt.Deep == 0 {
		return
	}
	fd, err := unix.Open(w.path("deep"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if !w.check(err) {
		return
	}
	defer func() { unix.Close(fd) }()
	for level := 1; level <= w.opt.Deep && w.err == nil; level++ {
		name := fmt.Sprintf("level%d", level)
		if !w.check(unix.Mkdirat(fd, name, 0o755)) {
			return
		}
		child, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if !w.check(err) {
			return
		}
		w.m.Dirs++
		w.check(unix.Fchmod(child, 0o755))
		w.deepFile(child, level)
		w.fdTime(child)
		if level > 1 {
			// A directory's time is set when nothing more is made in it.
			w.fdTime(fd)
		}
		unix.Close(fd)
		fd = child
	}
}

// deepFile puts a small file into every tenth level.
func (w *writer) deepFile(dirfd, level int) {
	if w.err != nil || level%10 != 0 {
		return
	}
	fd, err := unix.Openat(dirfd, "file", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if !w.check(err) {
		return
	}
	defer unix.Close(fd)
	p := w.fill(100, text)
	_, err = unix.Write(fd, p)
	w.check(err)
	w.check(unix.Fchmod(fd, 0o644))
	w.fdTime(fd)
	w.m.Files++
	w.m.Bytes += int64(len(p))
}

func (w *writer) fdTime(fd int) {
	at := w.time()
	ts := unix.Timespec{Sec: at.Unix(), Nsec: int64(at.Nanosecond())}
	w.check(unix.UtimesNanoAt(fd, "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH))
}

// wide makes a directory of many names.
func (w *writer) wide() {
	w.dir("wide")
	for i := range w.opt.Wide {
		name := fmt.Sprintf("wide/%0*d", 3+i%20, i) // neither sorted nor of one length
		switch {
		case i%50 == 7:
			w.dir(name)
		case i%50 == 8:
			w.symlink(name, "0000")
		default:
			w.file(name, w.fill(w.rng.IntN(40), text))
		}
	}
}

// data makes ordinary files in nested directories.
func (w *writer) data() {
	w.dir("data")
	if w.opt.Files == 0 {
		return
	}
	// Sizes are spread like those of real trees: many small, few large.
	weights := make([]float64, w.opt.Files)
	sum := 0.0
	for i := range weights {
		weights[i] = w.rng.ExpFloat64() * w.rng.ExpFloat64() * w.rng.ExpFloat64()
		sum += weights[i]
	}
	const perDir, perArea = 30, 600
	var kept [][]byte // contents that later files repeat, whole or shifted
	for i, weight := range weights {
		if i%perArea == 0 {
			w.dir(fmt.Sprintf("data/area%d", i/perArea))
		}
		dir := fmt.Sprintf("data/area%d/dir%d", i/perArea, i/perDir)
		if i%perDir == 0 {
			w.dir(dir)
		}
		size := int(float64(w.opt.Bytes) / sum * weight)
		kind := content(w.rng.IntN(int(contents)))
		var p []byte
		if kind == duplicate || kind == shifted {
			p = w.repeat(kept, size, kind)
		} else {
			p = w.fill(size, kind)
			if size > 1000 && size < 1<<20 && len(kept) < 16 {
				kept = append(kept, slices.Clone(p))
			}
		}
		w.file(filepath.Join(dir, fmt.Sprintf("file%d.%s", i, kind)), p)
	}
}
