package consul

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// Members of an archive, in their order.
const (
	metaFile  = "meta.json"
	stateFile = "state.bin"
	sumsFile  = "SHA256SUMS"
)

// What the small members may have, in bytes. A cluster of a thousand servers has a
// meta.json of a few hundred KiB.
const (
	maxMeta = 4 << 20
	maxSums = 64 << 10
)

// meta is what meta.json says. The field names are Raft's.
type meta struct {
	Version int
	ID      string // TERM-INDEX-MILLISECONDS since 1970
	Index   uint64
	Term    uint64
	Size    int64 // of state.bin
}

func parseMeta(p []byte) (meta, error) {
	var m meta
	if err := json.Unmarshal(p, &m); err != nil {
		return m, damaged("%s: %v", metaFile, err)
	}
	return m, nil
}

// time is when the snapshot was made, by the clock of the server that made it.
func (m meta) time() (time.Time, bool) {
	parts := strings.Split(m.ID, "-")
	ms, err := strconv.ParseInt(parts[len(parts)-1], 10, 64)
	if err != nil || len(parts) != 3 || ms < 0 || ms > 1<<50 {
		return time.Time{}, false
	}
	return time.UnixMilli(ms).UTC(), true
}

// archive is a snapshot's archive without its state: what is needed to write it again.
type archive struct {
	meta     meta
	metaJSON []byte
	sums     []byte
	mtimes   [3]int64 // of the members, in seconds since 1970
	mode     int64
}

// damaged says that what should be a snapshot is none.
func damaged(format string, a ...any) error {
	return fmt.Errorf(format+": %w", append(a, system.ErrIncomplete)...)
}

// readArchive reads an archive to its end, writes what state.bin is to state, and
// checks all that can be checked: names, sums, sizes, and that nothing follows.
// Only when it returns without an error is state to be believed.
func readArchive(r io.Reader, state io.Writer) (*archive, error) {
	in := bufio.NewReaderSize(r, 256<<10)
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, readError("gzip", err)
	}
	z.Multistream(false) // what follows would be read as one
	a := &archive{}
	sums := map[string]string{}
	t := tar.NewReader(z)
	for i := 0; ; i++ {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, readError("tar", err)
		}
		if err := a.member(i, h, t, state, sums); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{metaFile, stateFile, sumsFile} {
		if sums[name] == "" {
			return nil, damaged("the archive has no %s", name)
		}
	}
	// The end of the tar is not the end of the gzip stream, whose sum is behind it.
	if n, err := io.Copy(io.Discard, z); err != nil {
		return nil, readError("gzip", err)
	} else if n > 0 {
		return nil, damaged("%d bytes follow the members of the archive", n)
	}
	if _, err := in.Peek(1); err == nil {
		return nil, damaged("something follows the archive")
	} else if err != io.EOF {
		return nil, err
	}
	return a, a.check(sums)
}

// readError tells a broken archive from one that could not be read. What the readers
// of the formats say is about the former, but for errors that come from below them.
func readError(what string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("the archive ends early")
	}
	return fmt.Errorf("reading the archive: %s: %w: %w", what, err, system.ErrIncomplete)
}

// member reads the i-th member.
func (a *archive) member(i int, h *tar.Header, r io.Reader, state io.Writer, sums map[string]string) error {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return damaged("%q is a sparse file", h.Name)
		}
	}
	if h.Typeflag != tar.TypeReg || h.Size < 0 {
		return damaged("%q is no plain file", h.Name)
	}
	if sums[h.Name] != "" {
		return damaged("%s is in the archive twice", h.Name)
	}
	var buf bytes.Buffer
	var w io.Writer = &buf
	switch {
	case h.Name == stateFile:
		w = state
	case h.Name == metaFile && h.Size <= maxMeta, h.Name == sumsFile && h.Size <= maxSums:
	case h.Name == metaFile, h.Name == sumsFile:
		return damaged("%s has %d bytes", h.Name, h.Size)
	default:
		return damaged("%q is nothing that belongs into a snapshot", h.Name)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), r)
	if err != nil {
		return readError(h.Name, err)
	}
	sums[h.Name] = hex.EncodeToString(sum.Sum(nil))
	switch h.Name {
	case metaFile:
		a.metaJSON = buf.Bytes()
		if a.meta, err = parseMeta(a.metaJSON); err != nil {
			return err
		}
	case sumsFile:
		a.sums = buf.Bytes()
	case stateFile:
		sums["size"] = strconv.FormatInt(n, 10)
	}
	if i < len(a.mtimes) {
		a.mtimes[i] = h.ModTime.Unix()
	}
	a.mode = h.Mode
	return nil
}

// check compares what was read with what the archive says of itself.
func (a *archive) check(sums map[string]string) error {
	if sums["size"] != strconv.FormatInt(a.meta.Size, 10) {
		return damaged("%s has %s bytes, and %d by %s", stateFile, sums["size"], a.meta.Size, metaFile)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(a.sums)) {
		sum, name, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "  ")
		if !ok || name != metaFile && name != stateFile {
			return damaged("%s: %q", sumsFile, line)
		}
		if !strings.EqualFold(sum, sums[name]) {
			return damaged("the SHA-256 of %s is %s, and %s by %s", name, sums[name], sum, sumsFile)
		}
		seen[name] = true
	}
	if !seen[metaFile] || !seen[stateFile] {
		return damaged("%s names not all members", sumsFile)
	}
	return nil
}

// write writes an archive as Consul's servers do. state must have as many bytes as
// meta.json says.
func (a *archive) write(w io.Writer, state io.Reader) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for i, m := range []struct {
		name string
		r    io.Reader
		size int64
	}{{metaFile, bytes.NewReader(a.metaJSON), int64(len(a.metaJSON))}, {stateFile, state, a.meta.Size}, {sumsFile, bytes.NewReader(a.sums), int64(len(a.sums))}} {
		h := &tar.Header{Name: m.name, Mode: a.mode, Size: m.size, ModTime: time.Unix(a.mtimes[i], 0)}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if n, err := io.Copy(t, m.r); err != nil {
			return err
		} else if n != m.size {
			return damaged("%s has %d bytes of %d", m.name, n, m.size)
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}

// again is archive.json: how to write the archive again. The other members are files
// of their own beside it.
type again struct {
	Version     int      `json:"version"` // 1
	Regenerates bool     `json:"regenerates"`
	Size        int64    `json:"size"`
	SHA256      string   `json:"sha256"`
	Mode        int64    `json:"mode,omitempty"`
	Mtimes      [3]int64 `json:"mtimes"`
}

func parseAgain(p []byte) (again, error) {
	var g again
	if err := json.Unmarshal(p, &g); err != nil {
		return g, damaged("%s: %v", againFile, err)
	}
	if g.Version != 1 {
		return g, fmt.Errorf("%s is of version %d, which a newer cutbank wrote", againFile, g.Version)
	}
	if len(g.SHA256) != 2*sha256.Size || g.Size < 0 {
		return g, damaged("%s has no size and sum of the archive", againFile)
	}
	return g, nil
}

// digest counts and hashes what is written to it.
type digest struct {
	sum  interface{ Sum([]byte) []byte }
	w    io.Writer
	size int64
}

func newDigest() *digest {
	h := sha256.New()
	return &digest{sum: h, w: h}
}

func (d *digest) Write(p []byte) (int, error) {
	d.size += int64(len(p))
	return d.w.Write(p)
}

func (d *digest) hex() string { return hex.EncodeToString(d.sum.Sum(nil)) }
