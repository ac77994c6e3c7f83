package restore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// Mismatch is a restored path that is no longer as its receipt says.
type Mismatch struct {
	Path      string // below the target, any bytes
	What      string // "missing", "unreadable", "kind", "size", "mode", "owner", "mtime", "target", "device" or "content"
	Want, Got string // for people
}

func (m Mismatch) String() string {
	if m.Want == "" && m.Got == "" {
		return fmt.Sprintf("%q: %s", m.Path, m.What)
	}
	return fmt.Sprintf("%q: %s is %s, was %s", m.Path, m.What, m.Got, m.Want)
}

// Check compares what is below target with a receipt and yields every
// difference. It first reads the receipt through, and yields an error that
// wraps ErrReceipt, and nothing else, if that is not whole. It reads the
// contents of all files that have a hash, follows no symbolic link below
// target, and does not look for files that the receipt does not name. An
// error ends the sequence.
func Check(ctx context.Context, receipt io.ReadSeeker, target string) iter.Seq2[Mismatch, error] {
	return func(yield func(Mismatch, error) bool) {
		for _, err := range ReadReceipt(receipt) {
			if err != nil {
				yield(Mismatch{}, err)
				return
			}
		}
		if _, err := receipt.Seek(0, io.SeekStart); err != nil {
			yield(Mismatch{}, err)
			return
		}
		root, err := os.Open(target)
		if err != nil {
			yield(Mismatch{}, err)
			return
		}
		defer root.Close()
		c := &checker{ctx: ctx, root: int(root.Fd()), hash: chunk.NewDigest(), buf: make([]byte, blockSize)}
		for l, err := range ReadReceipt(receipt) {
			if err == nil {
				err = context.Cause(ctx)
			}
			if err != nil {
				yield(Mismatch{}, err)
				return
			}
			if l.Type != "entry" {
				continue
			}
			ms, err := c.entry(l)
			if err != nil {
				yield(Mismatch{}, err)
				return
			}
			for _, m := range ms {
				if !yield(m, nil) {
					return
				}
			}
		}
	}
}

type checker struct {
	ctx  context.Context
	root int
	hash hash.Hash
	buf  []byte
}

// entry compares one path.
func (c *checker) entry(l *ReceiptLine) ([]Mismatch, error) {
	p, err := decodeName(l.Path, l.PathB64)
	if err != nil {
		return nil, fmt.Errorf("path %q: %w: %w", l.Path, err, ErrReceipt)
	}
	fd, err := c.open(p)
	if err != nil {
		what := "unreadable"
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			what = "missing"
		}
		return []Mismatch{{Path: p, What: what, Want: "there", Got: err.Error()}}, nil
	}
	h := handle(fd)
	defer h.close()
	st, err := h.stat()
	if err != nil {
		return nil, err
	}
	var ms []Mismatch
	differ := func(what, want, got string) {
		if want != got {
			ms = append(ms, Mismatch{p, what, want, got})
		}
	}
	if differ("kind", l.Kind, st.kind.String()); len(ms) > 0 {
		return ms, nil
	}
	if st.kind != tree.Symlink {
		differ("mode", l.Mode, fmt.Sprintf("%04o", st.mode))
	}
	differ("owner", fmt.Sprintf("%d:%d", l.UID, l.GID), fmt.Sprintf("%d:%d", st.uid, st.gid))
	want := tree.Time{Sec: l.MtimeS, Nsec: l.MtimeNS}
	differ("mtime", stamp(want), stamp(st.mtime))
	switch st.kind {
	case tree.Symlink:
		want, err := decodeName(l.Target, l.TargetB64)
		if err != nil {
			return nil, fmt.Errorf("link target of %q: %w: %w", l.Path, err, ErrReceipt)
		}
		got, err := h.readlink()
		if err != nil {
			return nil, err
		}
		differ("target", want, got)
	case tree.CharDevice, tree.BlockDevice:
		differ("device", fmt.Sprintf("%#x", l.Rdev), fmt.Sprintf("%#x", st.rdev))
	case tree.File:
		differ("size", fmt.Sprint(l.Size), fmt.Sprint(st.size))
		if l.BLAKE3 != "" && l.Size == st.size {
			return append(ms, c.content(p, l.BLAKE3)...), context.Cause(c.ctx)
		}
	}
	return ms, nil
}

func stamp(t tree.Time) string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }

// open opens the last element of p with O_PATH, following nothing.
func (c *checker) open(p string) (int, error) {
	if p == "." {
		return dup(c.root)
	}
	return c.openFlags(p, pathFlags)
}

func (c *checker) openFlags(p string, flags int) (int, error) {
	for name := range strings.SplitSeq(p, "/") {
		if err := checkName(name); err != nil {
			return -1, err
		}
	}
	parent, base := path.Split(p)
	d, err := openDirPath(c.root, strings.TrimSuffix(parent, "/"), unix.O_PATH)
	if err != nil {
		return -1, err
	}
	defer unix.Close(d)
	return openat(d, base, flags, 0)
}

func (c *checker) content(p, want string) []Mismatch {
	fd, err := c.openFlags(p, unix.O_RDONLY|fileFlags)
	if err != nil {
		return []Mismatch{{Path: p, What: "unreadable", Want: "readable", Got: err.Error()}}
	}
	defer unix.Close(fd)
	sum, err := hashFile(c.ctx, fd, c.hash, c.buf)
	if err != nil {
		return []Mismatch{{Path: p, What: "unreadable", Want: "readable", Got: err.Error()}}
	}
	if got := hex.EncodeToString(sum); got != want {
		return []Mismatch{{p, "content", want, got}}
	}
	return nil
}

// hashFile returns the BLAKE3-256 hash of an open file's contents.
func hashFile(ctx context.Context, fd int, h hash.Hash, buf []byte) ([]byte, error) {
	h.Reset()
	for off := int64(0); ; {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		n, err := unix.Pread(fd, buf, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return h.Sum(nil), nil
		}
		h.Write(buf[:n])
		off += int64(n)
	}
}
