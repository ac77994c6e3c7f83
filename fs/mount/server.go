package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// Options says how to mount. The zero value is a good choice.
type Options struct {
	// AllowOther lets other users in, by the permissions that the nodes have.
	// Without it only the user who mounts gets in. Who is not root needs
	// user_allow_other in /etc/fuse.conf.
	AllowOther bool

	// ReadAhead is how many KiB the kernel reads ahead of a reader, 0 for
	// 1024, negative for the kernel's own choice. It takes effect where this
	// process may write below /sys/class/bdi, that is, for root.
	ReadAhead int

	// PushBytes bounds the bytes that are pushed into the page cache ahead of
	// those who read small files in order, 0 for 8 MiB, negative for none.
	PushBytes int64

	// Far says that reading from the snapshots takes long and costs something: then
	// contents are pushed only ahead of who has read two files in order, so that
	// reading one file reads nothing else.
	Far bool

	// Logf takes messages about damage, refused snapshots and trouble with
	// the kernel, one line each, without a newline. It may be called by many
	// goroutines at once. nil drops them.
	Logf func(format string, args ...any)

	// Statfs tells the bytes and files that statfs(2) shows; nil: none.
	Statfs func() (bytes, files uint64)

	// Root, if set, is the one directory to mount. Update does nothing then.
	Root tree.Numbered

	// FSName is shown as the source of the mount, for instance the place of
	// the repository; empty: "cutbank".
	FSName string
}

const (
	defaultReadAhead = 1024    // KiB
	defaultPushBytes = 8 << 20 // in all directories together

	maxRead       = 1 << 20 // bytes in a READ; more brings no more speed
	maxBackground = 64      // READs ahead that the kernel has under way at once
)

// Server serves one mount. Its methods are safe for concurrent use.
type Server struct {
	opt  Options
	fuse *fuse.Server
	dir  string // as the kernel lists it
	dev  string // major:minor of the mount

	life context.Context // ends with the mount
	end  context.CancelFunc
	done chan struct{} // closed when nothing serves any more

	fixed  *slot // Options.Root
	top    atomic.Pointer[top]
	recent recent
	push   *pusher // nil: off

	updateMu sync.Mutex // held by Update, never by a handler; guards lastSlot and lastTop
	lastSlot uint64
	lastTop  uint64

	count counters
	seen  damageLog
}

// Mount mounts at dir, which must be a directory; the mount answers when Mount
// returns. It starts with no snapshots: call Update. What a killed server has
// left at dir is cleaned away first; a live mount of cutbank at dir is an
// error.
func Mount(dir string, opt Options) (*Server, error) {
	if cleaned, err := Clean(dir); err != nil {
		return nil, err
	} else if cleaned && opt.Logf != nil {
		opt.Logf("%s: unmounted what a killed mount has left", dir)
	}
	point, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	if fi, err := os.Stat(point); err != nil {
		return nil, err
	} else if !fi.IsDir() {
		return nil, fmt.Errorf("cannot mount at %s: %w", dir, unix.ENOTDIR)
	}
	if opt.Root != nil && opt.Root.Attr().Kind != tree.Dir {
		return nil, fmt.Errorf("cannot mount a single %s: name its directory", opt.Root.Attr().Kind)
	}
	s := newServer(point, opt)
	if s.fuse, err = fuse.NewServer(ops{fuse.NewDefaultRawFileSystem(), s}, point, s.mountOptions()); err != nil {
		s.end()
		Clean(point) // where the kernel mounted and then nobody answered
		if h := unusable(); h != nil {
			err = h
		}
		return nil, fmt.Errorf("cannot mount at %s: %s", dir, strings.TrimSpace(err.Error()))
	}
	go func() {
		s.fuse.Serve()
		s.end()
		if s.push != nil {
			s.push.workers.Wait()
		}
		close(s.done)
	}()
	if err := s.fuse.WaitMount(); err != nil {
		unmount(point, true)
		return nil, fmt.Errorf("the mount at %s does not answer: %w", dir, err)
	}
	if m, st, err := lookAt(point); err == nil && st == Live {
		s.dev = m.dev
		s.setReadAhead()
	}
	return s, nil
}

func newServer(point string, opt Options) *Server {
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	if opt.FSName == "" {
		opt.FSName = subtype
	}
	if opt.ReadAhead == 0 {
		opt.ReadAhead = defaultReadAhead
	}
	if opt.PushBytes == 0 {
		opt.PushBytes = defaultPushBytes
	}
	s := &Server{opt: opt, dir: point, done: make(chan struct{}), lastTop: dots}
	s.life, s.end = context.WithCancel(context.Background())
	if opt.Root != nil {
		s.fixed = &slot{num: 1, ino: snapshotHash(opt.FSName)}
		s.fixed.root.Store(&opt.Root)
	}
	b := topBuilder{s: s, now: tree.TimeOf(time.Now())}
	s.top.Store(b.build(nil))
	if opt.PushBytes > 0 {
		s.push = newPusher(s, opt.PushBytes)
	}
	return s
}

// mountOptions: see doc.go for the caching; EnableAcl makes the kernel enforce
// ACLs, which without it are shown but not obeyed.
func (s *Server) mountOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		AllowOther:               s.opt.AllowOther,
		Options:                  []string{"ro", "nosuid", "nodev", "default_permissions"},
		FsName:                   s.opt.FSName,
		Name:                     subtype,
		MaxWrite:                 maxRead,
		MaxBackground:            maxBackground,
		CongestionThreshold:      maxBackground * 3 / 4,
		DirectMountStrict:        os.Geteuid() == 0, // others need fusermount
		DisableSplice:            true,              // it fills a pipe in vain
		EnableAcl:                true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_NO_OPENDIR_SUPPORT,
		Logger:                   log.New(kernelLog{s}, "", 0),
	}
}

// unusable tells why FUSE cannot be used here at all; nil: it can.
func unusable() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("FUSE is not usable here, load its module or allow access: %w", err)
	}
	return f.Close()
}

// setReadAhead tells the kernel how far to read ahead: go-fuse cannot ask for
// more than the 128 KiB that the kernel offers.
func (s *Server) setReadAhead() {
	if s.opt.ReadAhead < 0 {
		return
	}
	p := filepath.Join("/sys/class/bdi", s.dev, "read_ahead_kb")
	err := os.WriteFile(p, []byte(strconv.Itoa(s.opt.ReadAhead)), 0)
	if err != nil && !errors.Is(err, os.ErrPermission) && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EROFS) {
		s.logf("reads of large files are slower than they could be: %v", err)
	}
}

// Unmount takes the mount away and returns when nothing serves any more. A
// mount in use is unix.EBUSY, and the server goes on. A mount that somebody
// else has taken away is no error.
func (s *Server) Unmount() error {
	for wait := time.Millisecond; ; wait *= 4 {
		select {
		case <-s.done:
			return nil
		default:
		}
		m, st, err := lookAt(s.dir)
		switch {
		case err != nil && !errors.Is(err, unix.ENOTCONN):
			return err
		case st == None:
			<-s.done
			return nil
		case s.dev != "" && m.dev != s.dev:
			return fmt.Errorf("something else is mounted over %s: unmount it first", s.dir)
		}
		err = unmount(s.dir, false)
		if err == nil {
			<-s.done
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || wait > 64*time.Millisecond {
			return err
		}
		time.Sleep(wait) // a file that was just closed is not gone at once
	}
}

// Wait returns when the mount is gone, whoever unmounted it, and nothing
// serves any more.
func (s *Server) Wait() { <-s.done }

func (s *Server) logf(format string, args ...any) { s.opt.Logf(format, args...) }

// kernelLog passes on what go-fuse has to say.
type kernelLog struct{ s *Server }

func (k kernelLog) Write(p []byte) (int, error) {
	// The kernel asks once for what it could do without, such as STATX.
	if !bytes.Contains(p, []byte("Unimplemented opcode")) {
		k.s.logf("fuse: %s", bytes.TrimSpace(p))
	}
	return len(p), nil
}
