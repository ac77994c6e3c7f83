package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// helperDir, in the environment, makes the test binary a process that mounts
// there and waits to be killed.
const helperDir = "MOUNT_TEST_HELPER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		s, err := Mount(dir, Options{Root: newMemTree(dirNode("", fileNode("f", 10, 1))).root})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("mounted")
		s.Wait()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// requireFuse skips a test where FUSE cannot be used.
func requireFuse(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		if os.Geteuid() == 0 {
			return
		}
		if _, err = exec.LookPath("fusermount3"); err == nil {
			return
		}
	}
	lack(t, "fuse", fmt.Sprintf("FUSE is not usable: %v; load the module, give access to /dev/fuse, install fuse3", err))
}

// requireTool skips a test where a program is missing.
func requireTool(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		lack(t, "fuse", name+" is not installed")
	}
}

func lack(t testing.TB, what, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), what) {
		t.Fatalf("CUTBANK_REQUIRE asks for %s: %s", what, why)
	}
	t.Skipf("SKIPPED: %s", why)
}

// mountTest mounts for the length of a test.
func mountTest(t testing.TB, opt Options) (*Server, string) {
	t.Helper()
	requireFuse(t)
	dir := t.TempDir()
	if opt.Logf == nil {
		opt.Logf = t.Logf
	}
	s, err := Mount(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
			unmount(dir, true)
		}
	})
	return s, dir
}

// run runs a program and returns what it prints.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func snapshotOf(id, name, at string, root *memNode, tags ...string) Snapshot {
	t := newMemTree(root)
	return Snapshot{ID: id, Name: name, Time: at, Tags: tags, ModTime: tree.Time{Sec: 1.7e9},
		Open: func(context.Context) (tree.Numbered, error) { return t.root, nil }}
}

func TestUnmountBusy(t *testing.T) {
	s, dir := mountTest(t, Options{Root: newMemTree(dirNode("", fileNode("f", 10, 1))).root})
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	for _, unmount := range []func() error{s.Unmount, func() error { return Unmount(dir) }} {
		if err := unmount(); !errors.Is(err, unix.EBUSY) {
			t.Errorf("unmounting with an open file: %v, want EBUSY", err)
		}
	}
	if out := run(t, "cat", filepath.Join(dir, "f")); len(out) != 10 {
		t.Errorf("after EBUSY the server must go on; read %q", out)
	}
	f.Close()
	if err := s.Unmount(); err != nil {
		t.Error(err)
	}
	s.Wait()
	if err := s.Unmount(); err != nil {
		t.Errorf("second Unmount: %v", err)
	}
	if err := Unmount(dir); err == nil {
		t.Error("Unmount of an ordinary directory must be an error")
	}
}

func TestUnmountedByOthers(t *testing.T) {
	s, dir := mountTest(t, Options{})
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	s.Wait()
}

func TestMountRefuses(t *testing.T) {
	s, dir := mountTest(t, Options{})
	if st, err := Mounted(dir); st != Live || err != nil {
		t.Errorf("Mounted = %v, %v", st, err)
	}
	if _, err := Mount(dir, Options{}); err == nil {
		t.Error("mounting over a live mount must be an error")
	}
	if cleaned, err := Clean(dir); cleaned || err == nil {
		t.Errorf("Clean of a live mount = %v, %v", cleaned, err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if st, err := Mounted(link); st != Live || err != nil {
		t.Errorf("Mounted through a symlink = %v, %v", st, err)
	}
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Mount(file, Options{}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("mounting at a file: %v", err)
	}
	if _, err := Mount(filepath.Join(dir, "absent"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mounting at nothing: %v", err)
	}
	if _, err := Mount(dir, Options{Root: newMemTree(dirNode("", fileNode("f", 1, 1))).nodes[1]}); err == nil {
		t.Error("mounting a file must be an error")
	}
	if st, err := Mounted("/proc"); st != Foreign || err != nil {
		t.Errorf("Mounted(/proc) = %v, %v", st, err)
	}
}

func TestKilledServer(t *testing.T) {
	requireFuse(t)
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, _ := out.Read(line)
	if !bytes.HasPrefix(line[:n], []byte("mounted")) {
		cmd.Process.Kill()
		t.Fatalf("the helper says %q", line[:n])
	}
	run(t, "stat", dir) // so that the kernel has the attributes cached
	if _, err := Clean(dir); err == nil {
		t.Error("Clean must refuse a live mount of another process")
	}
	cmd.Process.Kill()
	cmd.Wait()
	if st, err := Mounted(dir); st != Dead || err != nil {
		t.Errorf("after kill -9: %v, %v", st, err)
	}
	cleaned, err := Clean(dir)
	if !cleaned || err != nil {
		t.Errorf("Clean = %v, %v", cleaned, err)
	}
	if cleaned, err = Clean(dir); cleaned || err != nil {
		t.Errorf("second Clean = %v, %v", cleaned, err)
	}
	if st, err := Mounted(dir); st != None || err != nil {
		t.Errorf("after Clean: %v, %v", st, err)
	}
}

func TestFindMount(t *testing.T) {
	info := []byte(`22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 22 0:50 / /mnt/a\040b rw,nosuid shared:9 master:2 - fuse.cutbank cutbank ro
91 90 0:51 / /mnt/a\040b rw - tmpfs tmpfs rw
a broken line
92 22 0:52 / /mnt/tab\011\134x rw - fuse.cutbank s3:bucket ro,user_id=0
`)
	for _, tt := range []struct {
		point, dev, fsType string
		ok                 bool
	}{
		{"/", "8:1", "ext4", true},
		{"/mnt/a b", "0:51", "tmpfs", true},
		{"/mnt/tab\t\\x", "0:52", "fuse.cutbank", true},
		{"/mnt", "", "", false},
	} {
		m, ok := findMount(info, tt.point)
		if ok != tt.ok || m.dev != tt.dev || m.fsType != tt.fsType {
			t.Errorf("findMount(%q) = %+v, %v; want %+v", tt.point, m, ok, tt)
		}
	}
}
