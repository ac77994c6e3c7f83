package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	subtype = "cutbank"
	fsType  = "fuse." + subtype

	// answerTime is how long a mount may take to answer before it counts as
	// alive but slow.
	answerTime = 5 * time.Second
)

// State is what is mounted at a directory.
type State int

const (
	None    State = iota // no mount point
	Foreign              // a mount point, but not of cutbank
	Live                 // a mount of cutbank whose server runs
	Dead                 // a mount of cutbank whose server is gone: every access is ENOTCONN
)

func (s State) String() string {
	return [...]string{"not mounted", "another file system", "mounted", "dead"}[s]
}

// Mounted tells what is mounted at dir, topmost first. The error says that
// dir or the kernel's list of mounts cannot be read.
func Mounted(dir string) (State, error) {
	_, st, err := lookAt(dir)
	return st, err
}

// Clean unmounts what a killed server has left at dir, lazily, so that open
// files are no hindrance. It reports whether there was something to clean. A
// live mount is an error, and another file system at dir is left alone.
func Clean(dir string) (cleaned bool, err error) {
	for {
		m, st, err := lookAt(dir)
		switch {
		case err != nil:
			return cleaned, err
		case st == Live:
			return cleaned, fmt.Errorf("%s is a live mount of cutbank: use it, or unmount it first", dir)
		case st != Dead:
			return cleaned, nil
		}
		if err := unmount(m.point, true); err != nil {
			return cleaned, err
		}
		cleaned = true // and look again: dead mounts may lie on each other
	}
}

// Unmount takes away the mount of cutbank at dir, live or dead. A mount in use
// is unix.EBUSY and stays. Anything else at dir is an error.
func Unmount(dir string) error {
	m, st, err := lookAt(dir)
	switch {
	case err != nil:
		return err
	case st == None:
		return fmt.Errorf("nothing is mounted at %s", dir)
	case st == Foreign:
		return fmt.Errorf("%s is no mount of cutbank but of type %s", dir, m.fsType)
	}
	return unmount(m.point, st == Dead)
}

// mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct {
	dev    string // major:minor
	point  string
	fsType string
}

// lookAt finds the topmost mount at dir and tells its state.
func lookAt(dir string) (mountEntry, State, error) {
	point, err := resolve(dir)
	if err != nil {
		return mountEntry{}, None, err
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mountEntry{}, None, err
	}
	m, ok := findMount(info, point)
	switch {
	case !ok:
		return m, None, nil
	case m.fsType != fsType:
		return m, Foreign, nil
	case answers(point):
		return m, Live, nil
	}
	return m, Dead, nil
}

// resolve returns dir as the kernel lists it: absolute, without symlinks. It
// works for a dead mount point, which itself cannot be looked at.
func resolve(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	fi, err := os.Lstat(abs)
	if err == nil && fi.Mode()&os.ModeSymlink != 0 || abs == "/" {
		return filepath.EvalSymlinks(abs)
	}
	if err != nil && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.EACCES) {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// answers asks the server behind a mount point something that the kernel never
// answers from its caches.
func answers(point string) bool {
	c := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		c <- unix.Statfs(point, &st)
	}()
	select {
	case err := <-c:
		return !errors.Is(err, unix.ENOTCONN)
	case <-time.After(answerTime):
		return true
	}
}

// findMount returns the last mount at point, which hides the others. See
// proc_pid_mountinfo(5).
func findMount(info []byte, point string) (found mountEntry, ok bool) {
	for line := range bytes.Lines(info) {
		before, after, sep := strings.Cut(string(line), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !sep || len(f) < 6 || len(g) < 1 {
			continue
		}
		if p := unescape(f[4]); p == point {
			found, ok = mountEntry{dev: f[2], point: p, fsType: unescape(g[0])}, true
		}
	}
	return found, ok
}

// unescape undoes the \040 for blanks, tabs, newlines and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// unmount unmounts point by the system call, or, where that is not allowed,
// by fusermount. A mount in use is unix.EBUSY.
func unmount(point string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(point, flags)
	if errors.Is(err, unix.EPERM) {
		err = fusermount(point, lazy)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is in use; leave it in every shell, close its files and try again: %w", point, err)
	case err != nil:
		return fmt.Errorf("cannot unmount %s: %w", point, err)
	}
	return nil
}

// fusermount unmounts for a user who is not root.
func fusermount(point string, lazy bool) error {
	bin, err := exec.LookPath("fusermount3")
	if err != nil {
		bin, err = exec.LookPath("fusermount")
	}
	if err != nil {
		return fmt.Errorf("%w; install fuse3", err)
	}
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	cmd := exec.Command(bin, append(args, "--", point)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case bytes.Contains(out, []byte(unix.EBUSY.Error())), bytes.Contains(bytes.ToLower(out), []byte("resource busy")):
		return unix.EBUSY
	}
	return fmt.Errorf("%s: %s", filepath.Base(bin), bytes.TrimSpace(out))
}
