package restore

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
	"github.com/cutbankfs/cutbank/test/gen"
)

// required reports whether CUTBANK_REQUIRE lists what.
func required(what string) bool {
	for s := range strings.SplitSeq(os.Getenv("CUTBANK_REQUIRE"), ",") {
		if s == what {
			return true
		}
	}
	return false
}

func skipOrFail(t *testing.T, what, why string) {
	t.Helper()
	if required(what) {
		t.Fatalf("%s, and CUTBANK_REQUIRE lists %s", why, what)
	}
	t.Skipf("SKIPPED: %s", why)
}

// rsyncSilent fails unless rsync sees no difference between two trees.
func rsyncSilent(t *testing.T, a, b string) {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		skipOrFail(t, "rsync", "rsync is not installed")
	}
	out, err := exec.Command("rsync", "-aHAXS", "--checksum", "-n", "-i", "--delete", a+"/", b+"/").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("rsync %s %s: %v\n%s", a, b, err, out)
	}
}

func open(t *testing.T, dir string) tree.Node {
	t.Helper()
	n, err := source.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func genTree(t *testing.T, seed uint64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	opt := gen.Default(seed)
	opt.Files, opt.Wide, opt.Bytes = 60, 60, 3<<20 // every changed file costs an fsync
	m, err := gen.Tree(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d: %+v", seed, m)
	return dir
}

func TestLikeRsync(t *testing.T) {
	for _, opt := range []struct {
		name string
		Options
	}{
		{"plain", Options{}},
		{"in place", Options{InPlace: true}},
		{"sparse, verified", Options{Sparse: true, Verify: true}},
		{"always, one worker", Options{Overwrite: Always, Workers: 1}},
	} {
		t.Run(opt.name, func(t *testing.T) {
			src, dst := genTree(t, 7), filepath.Join(t.TempDir(), "dst")
			opt := opt.Options
			var receipt bytes.Buffer
			opt.Receipt = &receipt
			restoreTo(t, open(t, src), dst, opt)
			rsyncSilent(t, src, dst)
			for m, err := range Check(t.Context(), bytes.NewReader(receipt.Bytes()), dst) {
				if err != nil {
					t.Fatal(err)
				}
				t.Error(m)
			}

			opt.Receipt = nil
			tot := restoreTo(t, open(t, src), dst, opt)
			if tot.Created+tot.Changed+tot.Meta+tot.Deleted != 0 || tot.BytesWrite != 0 || tot.Kept == 0 {
				t.Errorf("a second run is not idle: %+v", tot)
			}
			rsyncSilent(t, src, dst)

			for round := uint64(1); round <= 2; round++ {
				if _, err := gen.Mutate(dst, round, 0.3); err != nil {
					t.Fatal(err)
				}
				opt.Delete, opt.Yes = true, true
				opt.Overwrite = Always // a mutation may keep size and time
				restoreTo(t, open(t, src), dst, opt)
				rsyncSilent(t, src, dst)
			}
		})
	}
}

// TestUnprivileged runs the tests again as an ordinary user.
func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		skipOrFail(t, "fuse", "becoming another user needs root")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A directory that the user can reach.
	dir, err := os.MkdirTemp("/tmp", "cutbank-restore-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	bin, err := os.ReadFile(exe)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "test"), bin, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "test"), "-test.count=1", "-test.skip", "TestUnprivileged|TestLikeRsync|TestFull")
	cmd.Dir = dir
	cmd.Env = []string{"TMPDIR=" + dir, "PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as user 65534: %v\n%s", err, out)
	}
}

// TestFull: a full target ends the restore, leaves no temporary file, and
// keeps what was finished.
func TestFull(t *testing.T) {
	if os.Getuid() != 0 {
		skipOrFail(t, "fuse", "mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		skipOrFail(t, "fuse", "a small tmpfs cannot be mounted: "+err.Error())
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	kids := []*mem{memFile("a", random(1, 300<<10)), memFile("b", random(2, 2<<20))}
	for i := range 100 {
		kids = append(kids, memFile("c"+string(rune('0'+i/10))+string(rune('0'+i%10)), random(uint64(i), 64<<10)))
	}
	_, err := Run(t.Context(), []Item{{Node: memDir("", kids...)}}, dir, Options{Workers: 1, Sum: hasher.Sum})
	if err == nil || !strings.Contains(err.Error(), "the target is full") {
		t.Fatalf("got %v", err)
	}
	got := list(t, dir)
	if len(got) != 1 || got["a"] != string(kids[0].data) {
		t.Errorf("left %d files", len(got))
	}
}
