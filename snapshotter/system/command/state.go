package command

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// A system with hooks has a file in the directory of what outlives runs: it is made
// before the first hook and removed after the last. Who is at work holds it locked.
// One that is there and not locked was left by a run that was killed between its
// hooks, or whose last hook failed. It holds no command, for a command may hold a
// secret.

// poll is how often it is looked whether the file is locked still.
const poll = 100 * time.Millisecond

// state is the file of one system, locked.
type state struct {
	f    *os.File
	left *began // what the last run left; nil: nothing
}

// began is what the file says.
type began struct {
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	PID     int       `json:"pid"`
}

// openState opens and locks the file of the system that is captured under a name as
// what.
func openState(dir, name, what string) (*state, error) {
	sum := sha256.Sum256([]byte(name + "\x00" + what))
	path := filepath.Join(dir, fmt.Sprintf("command-%x.json", sum[:12]))
	for tries := 0; ; tries++ {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			ending, err := busy(f, name, err)
			f.Close()
			if !ending || tries > int((grace+time.Second)/poll) {
				return nil, err
			}
			time.Sleep(poll)
			continue
		}
		s := &state{f: f}
		x, err := f.Stat()
		y, lerr := os.Lstat(path)
		if err == nil && lerr == nil && os.SameFile(x, y) { // it was not removed before it was locked
			return s, s.read()
		}
		f.Close()
	}
}

// busy is the error where the file is locked. ending says that who has written it is
// dead: what that had begun is being ended, and the lock held until then, see guard.
func busy(f *os.File, name string, err error) (ending bool, _ error) {
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return false, fmt.Errorf("%s: flock: %w", f.Name(), err)
	}
	s := &state{f: f}
	if s.read() == nil && s.left != nil {
		ending = s.left.PID > 0 && syscall.Kill(s.left.PID, 0) == syscall.ESRCH
		return ending, fmt.Errorf("process %d has been capturing %s since %s: %w", s.left.PID, name, s.left.Started.UTC().Format(time.RFC3339), system.ErrRefused)
	}
	return false, fmt.Errorf("another process is capturing %s: %w", name, system.ErrRefused)
}

func (s *state) read() error {
	p, err := io.ReadAll(io.NewSectionReader(s.f, 0, 1<<16))
	if err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	s.left = &began{}
	if err := json.Unmarshal(p, s.left); err != nil {
		s.left = &began{} // written by a run that was killed at it: it was there
	}
	return nil
}

// begin writes down that hooks run from now on.
func (s *state) begin(b began) error {
	p, err := json.Marshal(b)
	if err != nil {
		return err
	}
	if err := s.f.Truncate(0); err != nil {
		return err
	}
	if _, err := s.f.WriteAt(p, 0); err != nil {
		return err
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(s.f.Name()))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// end removes the file: the hooks are through.
func (s *state) end() error {
	err := os.Remove(s.f.Name())
	return errors.Join(err, s.f.Close())
}

// leave unlocks the file for the next run to find.
func (s *state) leave() { s.f.Close() }
