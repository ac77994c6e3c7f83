package diskcache

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func key(n int) Key {
	var k Key
	binary.LittleEndian.PutUint64(k.Pack[:], uint64(n)*0x9e3779b97f4a7c15)
	k.Off = uint32(n)
	return k
}

// body is a frame of which each part tells whose it is.
func body(n, size int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%08d", n)), (size+7)/8)[:size]
}

// onDisk returns what the files take, as it is counted.
func onDisk(t testing.TB, dir string) (sum int64, files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != stateName {
			var fi fs.FileInfo
			if fi, err = d.Info(); err == nil {
				sum, files = sum+charge(fi.Size()), files+1
			}
		}
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum, files
}

// keep puts a frame and waits until it is written.
func keep(c *Cache, n, size int) {
	c.Put(key(n), body(n, size))
	c.idle.Wait()
}

func wantFrame(t testing.TB, c *Cache, n, size int, want bool) {
	t.Helper()
	p := c.Get(key(n), int64(size))
	if want != (p != nil) || p != nil && !bytes.Equal(p, body(n, size)) {
		t.Errorf("frame %d: got %d bytes, want it here: %v", n, len(p), want)
	}
}

func TestPutGet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there")
	c := Open(dir, 1<<20)
	wantFrame(t, c, 1, 100, false)
	if n, err := Usage(dir); n != 0 || err != nil {
		t.Errorf("no cache takes %d bytes, %v", n, err)
	}
	keep(c, 1, 100)
	keep(c, 2, 200_000)
	wantFrame(t, c, 1, 100, true)
	wantFrame(t, c, 2, 200_000, true)
	if !c.Has(key(1), 100) || c.Has(key(1), 99) || c.Has(key(3), 100) {
		t.Error("Has does not know what is here")
	}
	c.Drop(key(2))
	wantFrame(t, c, 2, 200_000, false)
	if c.Get(key(1), 99) != nil { // another length than it should have
		t.Error("a frame of another length was given out")
	}
	wantFrame(t, c, 1, 100, false)
	keep(c, 5, 2<<20) // more than the limit
	wantFrame(t, c, 5, 2<<20, false)
	c.Close()
	c.Put(key(7), body(7, 10))
	wantFrame(t, c, 7, 10, false)
}

// Nobody but the owner reads, whatever the umask.
func TestPermissions(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	dir := filepath.Join(t.TempDir(), "frames")
	c := Open(dir, 1<<20)
	keep(c, 1, 100)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if fi, err := d.Info(); err != nil || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, %v", p, fi.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The limit holds, and what was wanted lately stays.
func TestEviction(t *testing.T) {
	dir := t.TempDir()
	const size, limit = 8 << 10, 2 << 20 // 256 frames
	c := Open(dir, limit)
	for n := range 600 {
		keep(c, n, size)
		for hot := range 10 {
			if n >= 10 && c.Get(key(hot), size) == nil && n < 300 {
				t.Fatalf("frame %d, which is wanted all the time, is gone after %d", hot, n)
			}
		}
		if sum, _ := onDisk(t, dir); sum > limit {
			t.Fatalf("after %d frames there are %d bytes, the limit is %d", n, sum, limit)
		}
	}
	sum, files := onDisk(t, dir)
	if sum < limit/2 {
		t.Errorf("only %d files of %d bytes are left of %d", files, sum, limit)
	}
	kept := 0
	for n := 500; n < 600; n++ {
		if c.Has(key(n), size) {
			kept++
		}
	}
	if kept < 70 {
		t.Errorf("of the last 100 frames only %d are here", kept)
	}
	// Another process with less room.
	small := Open(dir, limit/4)
	keep(small, 2000, size)
	if sum, _ := onDisk(t, dir); sum > limit/4 {
		t.Errorf("%d bytes are left, the limit is now %d", sum, limit/4)
	}
	wantFrame(t, small, 2000, size, true)
}

// A state that is damaged or deleted is made anew from what is there.
func TestLostState(t *testing.T) {
	for _, damage := range []func(path string) error{
		os.Remove,
		func(path string) error { return os.Truncate(path, 7) },
		func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte{0xff}, stateSize), 0o600) },
		func(path string) error { return os.WriteFile(path, make([]byte, stateSize+1), 0o600) },
	} {
		dir := t.TempDir()
		const size, limit = 8 << 10, 1 << 20
		c := Open(dir, limit)
		for n := range 200 {
			keep(c, n, size)
		}
		if err := damage(filepath.Join(dir, stateName)); err != nil {
			t.Fatal(err)
		}
		for n := 200; n < 400; n++ {
			keep(c, n, size)
		}
		if sum, _ := onDisk(t, dir); sum > limit || sum < limit/4 {
			t.Errorf("%d bytes are kept, the limit is %d", sum, limit)
		}
	}
}

// All may be deleted while it is read and filled.
func TestDeletedMeanwhile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "frames")
	const size, limit = 8 << 10, 1 << 20
	var users sync.WaitGroup
	for w := range 3 {
		users.Go(func() {
			c := Open(dir, limit)
			defer c.Close()
			for n := range 600 {
				c.Put(key(n), body(n, size))
				if p := c.Get(key((n*7+w)%600), size); p != nil && !bytes.Equal(p, body((n*7+w)%600, size)) {
					t.Errorf("frame %d holds other bytes", n)
				}
			}
		})
	}
	for range 30 {
		if _, err := Clear(dir); err != nil {
			t.Log(err) // somebody is always faster
		}
		time.Sleep(2 * time.Millisecond)
	}
	users.Wait()
	c := Open(dir, limit)
	for n := range 300 {
		keep(c, n, size)
	}
	if sum, _ := onDisk(t, dir); sum > limit || sum < limit/4 {
		t.Errorf("afterwards %d bytes are kept, the limit is %d", sum, limit)
	}
}

const childDir = "CUTBANK_TEST_DISKCACHE"

// TestChild is what other tests run as a process of its own.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("for other tests only")
	}
	c := Open(dir, 1<<20)
	fmt.Println("begun")
	for n := 0; ; n++ {
		n := n*2 + os.Getpid()%2
		keep(c, n, 8<<10)
		if p := c.Get(key(n/2), 8<<10); p != nil && !bytes.Equal(p, body(n/2, 8<<10)) {
			fmt.Println("damaged", n/2)
		}
	}
}

func child(t *testing.T, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "begun" {
		t.Fatal("the child did not begin")
	}
	return cmd, lines
}

// Processes share the limit; one that is killed anywhere leaves nothing behind that
// others do not get over.
func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	const limit = 1 << 20
	for round := range 6 {
		var children []*exec.Cmd
		var outs []*bufio.Scanner
		for range 2 {
			cmd, out := child(t, dir)
			children, outs = append(children, cmd), append(outs, out)
		}
		for range 20 {
			time.Sleep(time.Duration(3+round) * time.Millisecond)
			// A look that takes a while may see a file that replaces one it saw.
			if sum, _ := onDisk(t, dir); sum > limit+limit/4 {
				t.Errorf("%d bytes are there, the limit is %d", sum, limit)
			}
		}
		for i, cmd := range children {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			for outs[i].Scan() {
				if strings.HasPrefix(outs[i].Text(), "damaged") {
					t.Error(outs[i].Text())
				}
			}
			_ = cmd.Wait()
		}
		if sum, _ := onDisk(t, dir); sum > limit {
			t.Errorf("when they are dead %d bytes are there, the limit is %d", sum, limit)
		}
	}
	// What a kill left half written goes, and counts until then.
	stray := filepath.Join(dir, folderName(0), tempName)
	if err := os.MkdirAll(filepath.Dir(stray), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stray, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Open(dir, limit)
	for n := 1 << 20; n < 1<<20+600; n++ {
		keep(c, n, 8<<10)
	}
	if _, err := os.Stat(stray); err == nil {
		t.Error("what a killed process left is still there")
	}
	if sum, _ := onDisk(t, dir); sum > limit || sum < limit/4 {
		t.Errorf("afterwards %d bytes are there, the limit is %d", sum, limit)
	}
}

// A process that is stopped while it has the lock keeps nobody from reading.
func TestHeldLock(t *testing.T) {
	dir := t.TempDir()
	c := Open(dir, 1<<20)
	keep(c, 1, 100)
	st, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	keep(c, 2, 100)
	wantFrame(t, c, 1, 100, true)
	wantFrame(t, c, 2, 100, false)
	st.close()
	keep(c, 2, 100)
	wantFrame(t, c, 2, 100, true)
}

// A full disk only means that nothing is kept, and the cache does not fill it.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), "fuse") {
			t.Fatalf("CUTBANK_REQUIRE names fuse, and nothing can be mounted: %v", err)
		}
		t.Skipf("SKIPPED for want of a tmpfs, which root can mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	c := Open(filepath.Join(dir, "frames"), 64<<20)
	const size = 64 << 10
	for n := range 100 {
		keep(c, n, size)
	}
	wantFrame(t, c, 0, size, true)
	wantFrame(t, c, 99, size, false)
	var fsStat unix.Statfs_t
	if err := unix.Statfs(dir, &fsStat); err != nil || fsStat.Bavail*uint64(fsStat.Bsize) < 4<<20/20 {
		t.Errorf("%d blocks are left free, %v", fsStat.Bavail, err)
	}
	// Others fill it to the last byte.
	rest := make([]byte, 4<<20)
	f, err := os.Create(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	for n := len(rest); n > 0; n /= 2 {
		for {
			if _, err := f.Write(rest[:n]); err != nil {
				break
			}
		}
	}
	f.Close()
	keep(c, 200, 100)
	wantFrame(t, c, 0, size, true)
	wantFrame(t, c, 200, 100, false)
	if err := os.Remove(filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	keep(c, 201, 100)
	wantFrame(t, c, 201, 100, true)
}

// A file of 100 KB for each frame, and ones of 4 MB: what writing and reading cost.
func BenchmarkFrames(b *testing.B) {
	for _, size := range []int{10_000, 100_000, 4_000_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			c := Open(b.TempDir(), 1<<30)
			p := body(1, size)
			b.Run("put", func(b *testing.B) {
				b.SetBytes(int64(size))
				for i := 0; b.Loop(); i++ {
					c.write([]entry{{key(i), p}})
				}
			})
			b.Run("get", func(b *testing.B) {
				b.SetBytes(int64(size))
				c.write([]entry{{key(1), p}})
				for b.Loop() {
					if c.Get(key(1), int64(size)) == nil {
						b.Fatal("not here")
					}
				}
			})
		})
	}
}
