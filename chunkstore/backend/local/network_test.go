package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

// mounted is a Folder on a file system with those faults.
func mounted(t *testing.T, faults *backendtest.FolderFaults) *Folder {
	t.Helper()
	return openAt(t, backendtest.MountFolder(t, t.TempDir(), faults))
}

func openAt(t *testing.T, dir string) *Folder {
	t.Helper()
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func names(t *testing.T, f *Folder) []string {
	t.Helper()
	var all []string
	for info, err := range f.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, info.Name)
	}
	slices.Sort(all)
	return all
}

func wantTmpEmpty(t *testing.T, f *Folder) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(f.dir, tmpName))
	if err != nil || len(entries) > 0 {
		t.Errorf("tmp holds %v, %v", entries, err)
	}
}

// lacking are file systems without link(2).
var lacking = map[string]backendtest.FolderFaults{
	"EPERM":         {Link: syscall.EPERM},
	"NoFlags":       {Link: syscall.EOPNOTSUPP, RenameFlag: syscall.EINVAL},
	"FlagsForgot":   {Link: syscall.ENOSYS, ForgetFlag: true},
	"OneDirectory":  {Link: syscall.EXDEV, RenameFlag: syscall.EINVAL},
	"RenameAnswers": {Link: syscall.EPERM, RenameFlag: syscall.EINVAL, RenameDone: syscall.EIO},
	"LinkAnswers":   {LinkDone: syscall.EIO},
}

// The contract, where link(2) is refused or answers what is not so.
func TestFolderContractByFUSE(t *testing.T) {
	all := []string{"NoFlags", "RenameAnswers", "LinkAnswers"}
	if testing.Short() {
		all = all[:1] // the race detector makes much of it
	}
	for _, name := range all {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backend.Backend {
				faults := lacking[name]
				return mounted(t, &faults)
			})
		})
	}
}

// Processes of two machines race, and half of them are killed.
func TestFolderRacesOfMachines(t *testing.T) {
	for name := range lacking {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var machines [2]string
			for i := range machines {
				faults := lacking[name]
				if faults.LinkDone == 0 && faults.RenameDone == 0 { // or what became of them stays unclear
					faults.Lag = time.Duration(i) * 300 * time.Millisecond
				}
				machines[i] = backendtest.MountFolder(t, dir, &faults)
			}
			n := 0
			backendtest.RaceProcesses(t, openAt(t, dir), func(racer string) *exec.Cmd {
				c := exec.Command(os.Args[0])
				c.Env = append(os.Environ(), "CUTBANK_TEST_RACE="+machines[n%3%2], "CUTBANK_TEST_RACER="+racer)
				n++
				return c
			})
			if _, err := openAt(t, dir).Sweep(time.Now().Add(2 * tmpAge)); err != nil {
				t.Error(err)
			}
			wantTmpEmpty(t, openAt(t, dir))
		})
	}
}

// Objects are files where nobody races for their names, and directories where
// create-if-absent decides.
func TestFolderOfDirectories(t *testing.T) {
	dir := t.TempDir()
	f := openAt(t, backendtest.MountFolder(t, dir, &backendtest.FolderFaults{Link: syscall.EPERM, RenameFlag: syscall.EINVAL}))
	for name, file := range map[string]string{
		"packs/ab/x": "packs/ab/x", "index/y": "index/y", "snapshots/z": "snapshots/z/content~", "config/1": "config/1/content~",
	} {
		if err := f.Put(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Lstat(filepath.Join(f.dir, file)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	wantTmpEmpty(t, f)
	// Both forms keep each other out, and are read by all.
	links := openAt(t, dir)
	if err := links.Put(t.Context(), "snapshots/file", []byte("file")); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*Folder{f, links} {
		for _, name := range []string{"snapshots/z", "snapshots/file", "packs/ab/x"} {
			if err := f.Put(t.Context(), name, nil); !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s, which is there: %v", name, err)
			}
		}
		if got, err := f.Get(t.Context(), "snapshots/z", 5, 4); err != nil || string(got) != "hots" {
			t.Errorf("got %q, %v", got, err)
		}
		if got, want := fmt.Sprint(names(t, f)), "[config/1 index/y packs/ab/x snapshots/file snapshots/z]"; got != want {
			t.Errorf("listed %s", got)
		}
	}
	// What an interrupted Remove has left is no object, and in nobody's way.
	for _, f := range []*Folder{f, links} {
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, "snapshots/z")), os.Mkdir(filepath.Join(dir, "snapshots/z"), 0o700)); err != nil {
			t.Fatal(err)
		}
		if got := names(t, f); slices.Contains(got, "snapshots/z") {
			t.Errorf("listed %v", got)
		}
		if _, err := f.Get(t.Context(), "snapshots/z", 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get: %v", err)
		}
		if err := f.Remove(t.Context(), "snapshots/z"); err != nil {
			t.Error(err)
		}
		if err := f.Put(t.Context(), "snapshots/z", []byte("again")); err != nil {
			t.Errorf("put again: %v", err)
		}
		if err := f.Remove(t.Context(), "snapshots/z"); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "snapshots/z")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after remove: %v", err)
		}
	}
}

// A flag that a program passes over would let a cached look decide: renameat2 is
// not used where other machines are. Who is told that a name is taken can read
// what has it, though the cache said a moment ago that there is nothing.
func TestFolderBehindACache(t *testing.T) {
	dir := t.TempDir()
	lag := 500 * time.Millisecond
	a := openAt(t, backendtest.MountFolder(t, dir, &backendtest.FolderFaults{Link: syscall.EPERM, ForgetFlag: true, Lag: lag}))
	b := openAt(t, backendtest.MountFolder(t, dir, &backendtest.FolderFaults{Link: syscall.EPERM, ForgetFlag: true, Lag: lag}))
	if a.Lag() != networkLag {
		t.Fatalf("lag %v", a.Lag())
	}
	for i, name := range []string{"snapshots/1", "snapshots/2"} {
		if i == 1 { // and so by links
			for _, f := range []*Folder{a, b} {
				f.way.noLink.Store(false)
				f.way.link = func(old, newName string) error {
					return os.Link(filepath.Join(dir, strings.TrimPrefix(old, f.dir)), filepath.Join(dir, strings.TrimPrefix(newName, f.dir)))
				}
			}
		}
		if err := b.Put(t.Context(), fmt.Sprint("snapshots/other", i), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Get(t.Context(), name, 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		before := len(names(t, a))
		if err := b.Put(t.Context(), name, []byte("of b")); err != nil {
			t.Fatal(err)
		}
		if got := names(t, a); len(got) != before {
			t.Errorf("the listing should be old, but has %v", got)
		}
		if err := a.Put(t.Context(), name, []byte("of a")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: put where another machine has: %v", name, err)
		}
		if got, err := a.Get(t.Context(), name, 0, -1); err != nil || string(got) != "of b" {
			t.Errorf("%s: told that it is there, but got %q, %v", name, got, err)
		}
		time.Sleep(lag)
		if got := names(t, a); !slices.Contains(got, name) {
			t.Errorf("later: %v", got)
		}
	}
}

// Where nothing at all is atomic, that is said; and done without, if so wished.
func TestFolderUnfenced(t *testing.T) {
	f := mounted(t, &backendtest.FolderFaults{Link: syscall.EPERM, RenameFlag: syscall.EINVAL, RenameDir: syscall.EPERM})
	if err := f.Put(t.Context(), "packs/ab/x", []byte("x")); err != nil {
		t.Errorf("a name that nobody races for: %v", err)
	}
	err := f.Put(t.Context(), "config/1", []byte("x"))
	if !errors.Is(err, backend.ErrUnfenced) || !strings.Contains(err.Error(), f.dir) {
		t.Errorf("got %v", err)
	}
	if err := backend.Fenced(t.Context(), f, []string{"tmp/fence"}); !errors.Is(err, backend.ErrUnfenced) {
		t.Errorf("tried out: %v", err)
	}
	wantTmpEmpty(t, f)
	careless := backend.LookFirst(f)
	for _, want := range []error{nil, fs.ErrExist} {
		if err := careless.Put(t.Context(), "config/1", []byte("x")); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

// What is not on the server is not put.
func TestFolderWriteBackFails(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.EDQUOT} {
		for name, faults := range map[string]*backendtest.FolderFaults{"close": {Flush: errno}, "fsync": {Fsync: errno}} {
			t.Run(fmt.Sprint(name, " ", errno), func(t *testing.T) {
				f := mounted(t, faults)
				err := f.Put(t.Context(), "packs/ab/x", []byte("x"))
				if !errors.Is(err, errno) {
					t.Errorf("got %v, want %v", err, errno)
				}
				if full := strings.Contains(fmt.Sprint(err), "is full"); full != (errno == syscall.EDQUOT) {
					t.Errorf("got %v", err)
				}
				if got := names(t, f); len(got) > 0 {
					t.Errorf("listed %v", got)
				}
				wantTmpEmpty(t, f)
			})
		}
	}
}

// A repository that was made with links is only read where there are none.
func TestFolderMoved(t *testing.T) {
	dir := t.TempDir()
	if err := openAt(t, dir).Put(t.Context(), "config/1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	f := openAt(t, backendtest.MountFolder(t, dir, &backendtest.FolderFaults{Link: syscall.EPERM, RenameFlag: syscall.EINVAL}))
	if _, err := f.Get(t.Context(), "config/1", 0, -1); err != nil {
		t.Error(err)
	}
	err := f.Put(t.Context(), "snapshots/x", nil)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(fmt.Sprint(err), "cutbank copy") {
		t.Errorf("got %v", err)
	}
	wantTmpEmpty(t, f)
}

// A file system that is not mounted any more leaves a folder in which nothing is
// known to be missing, and nothing is put.
func TestFolderUnmounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "repo")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := openAt(t, dir).Put(t.Context(), "config/1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	f := openAt(t, dir)
	for range f.List(t.Context(), "snapshots/") {
		t.Error("a snapshot")
	}
	if err := errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	_, get := f.Get(t.Context(), "packs/ab/x", 0, -1)
	var list error
	for _, list = range f.List(t.Context(), "snapshots/") {
	}
	for verb, err := range map[string]error{
		"get": get, "list": list, "remove": f.Remove(t.Context(), "packs/ab/x"), "put": f.Put(t.Context(), "packs/ab/x", nil),
	} {
		if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "mounted") {
			t.Errorf("%s: got %v", verb, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

// A draft that stood still for a day is swept, and never published without its
// content.
func TestSweepDirectories(t *testing.T) {
	f := mounted(t, &backendtest.FolderFaults{Link: syscall.EPERM, RenameFlag: syscall.EINVAL})
	if err := f.Put(t.Context(), "snapshots/1", nil); err != nil {
		t.Fatal(err)
	}
	rename, stood := f.way.rename, false
	f.way.rename = func(old, newName string) error {
		if !stood && strings.HasPrefix(newName, filepath.Join(f.dir, "snapshots")) {
			stood = true
			if n, err := f.Sweep(time.Now().Add(2 * tmpAge)); n != 1 || err != nil {
				t.Errorf("swept %d, %v", n, err)
			}
		}
		return rename(old, newName)
	}
	if err := f.Put(t.Context(), "snapshots/2", []byte("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("put: got %v", err)
	}
	tmp, _, err := f.write([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	left := strings.TrimSuffix(tmp, tmpMark) + "-d" + tmpMark
	if err := errors.Join(os.Mkdir(left, 0o700), os.Rename(tmp, filepath.Join(left, contentName))); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(names(t, f)); got != "[snapshots/1]" {
		t.Errorf("listed %s", got)
	}
	for _, want := range []struct{ ahead, n int }{{0, 0}, {2, 1}, {2, 0}} {
		if n, err := f.Sweep(time.Now().Add(time.Duration(want.ahead) * tmpAge)); n != want.n || err != nil {
			t.Errorf("swept %d, %v, want %d", n, err, want.n)
		}
	}
	wantTmpEmpty(t, f)
}

// Somebody has what is to be moved or removed open, for a moment or for ever.
func TestFolderBusy(t *testing.T) {
	f := create(t)
	busy := 3
	f.way.link = func(old, newName string) error {
		if busy--; busy > 0 {
			return syscall.EBUSY
		}
		return os.Link(old, newName)
	}
	if err := f.Put(t.Context(), "config/1", nil); err != nil || busy != 0 {
		t.Errorf("got %v, %d", err, busy)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	busy = 1 << 30
	if err := f.Put(ctx, "config/2", nil); !errors.Is(err, syscall.EBUSY) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	wantTmpEmpty(t, f)
}

// What file systems put into a folder by themselves is no object and cannot
// become one.
func TestFolderForeign(t *testing.T) {
	f := create(t)
	for _, name := range []string{".nfs0000000000c0ffee00000001", ".fuse_hidden0000000100000002", ".snapshot/hourly.0/x"} {
		if err := f.Put(t.Context(), "packs/"+name, nil); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("put %s: %v", name, err)
		}
		file := filepath.Join(f.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, f); len(got) > 0 {
		t.Errorf("listed %v", got)
	}
	if _, err := Create(f.dir); err != nil {
		t.Error(err)
	}
}

func TestKinds(t *testing.T) {
	disk := unix.Mkdev(8, 1)
	for _, tt := range []struct {
		what  string
		magic uint32
		dev   uint64
		lag   time.Duration
		alone bool
	}{
		{"ext4", unix.EXT4_SUPER_MAGIC, disk, 0, true},
		{"exFAT", unix.EXFAT_SUPER_MAGIC, disk, 0, true},
		{"a disk that a FUSE program reads", unix.FUSE_SUPER_MAGIC, disk, 0, true},
		{"sshfs", unix.FUSE_SUPER_MAGIC, 42, networkLag, false},
		{"tmpfs", unix.TMPFS_MAGIC, 42, 0, true},
		{"btrfs", unix.BTRFS_SUPER_MAGIC, 42, 0, true},
		{"NFS", unix.NFS_SUPER_MAGIC, 42, networkLag, false},
		{"SMB", unix.SMB2_SUPER_MAGIC, 42, networkLag, false},
		{"CIFS", unix.CIFS_SUPER_MAGIC, 42, networkLag, false},
		{"9p", unix.V9FS_MAGIC, 42, networkLag, false},
		{"CephFS", 0x00c36400, 42, 0, false},
		{"GFS2", 0x01161970, disk, 0, false},
		{"an unknown one without a device", 0x1234, 42, networkLag, false},
	} {
		if k := kindOf(tt.magic, tt.dev); k.lag != tt.lag || k.alone != tt.alone {
			t.Errorf("%s: got %+v", tt.what, k)
		}
	}
	if f := create(t); !bytes.HasPrefix([]byte(f.String()), []byte("/")) || f.Lag() != 0 {
		t.Errorf("%s: lag %v", f, f.Lag())
	}
}
