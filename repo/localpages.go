package repo

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/index"
)

// A write-only node cannot read the pages of its last snapshot, from which the
// next one knows what is unchanged. So it keeps them itself: one file for each
// name and set of paths, below its folder for local state:
//
//	<repository>/pages/v1-<32 hexadecimal digits>
//
// The digits are a hash, under the node's own key, of the name and the paths. The
// file is written beside its name and renamed. It may be deleted at any time;
// then every file is read once. All numbers are little endian.
//
//	 0   7  "cutbank"
//	 7   1  'Q'
//	 8   2  format version: 1
//	10  16  salt
//	        blocks, each a stored frame of package seal under the key that is
//	        derived from the writer's seed and the salt (seal.Keys.LocalKey),
//	        numbered from 0, with the salt as the pack's name
//	     4  length of the last block
//	     4  its number
//
// The first blocks hold pages, one behind the other. Then come blocks that hold
// one chunk each: entries of 22 bytes, ascending over all of them, one for each
// page: the first 16 bytes of its ID, 4 bytes number of its block, 2 bytes place
// in there. The last block holds two chunks: the record of the snapshot as JSON
// (Snapshot, of which name, paths, time, ID and the two roots are set), and the
// table of all blocks before it: 8 bytes offset, 4 bytes length, 1 byte kind (0
// pages, 1 entries).
const (
	pagesHead     = "cutbankQ\x01\x00"
	pagesHeadSize = len(pagesHead) + 16
	pagesTail     = 8
	pagesBlock    = 64 << 10 // plain bytes of a block
	pagesEntry    = 16 + 4 + 2
	pagesRow      = 8 + 4 + 1
	pagesPrefix   = "v1-"
	pagesTemp     = "tmp-"
	pagesUse      = "pages"
	// maxBlockPages is how many places of a block 2 bytes can tell apart.
	maxBlockPages = 1 << 12
	entriesBlock  = 1 << 15 // entries in a block
	cachedBlocks  = 64
)

type keptPage [16]byte

type keptPlace struct {
	block uint32
	at    uint16
}

// pagesFile is where the pages of that name and paths are kept; empty if none
// are.
func (r *Repo) pagesFile(name string, paths []Path) (string, error) {
	if r.opt.CacheDir == "" {
		return "", nil
	}
	what, err := json.Marshal(struct {
		Name  string
		Paths []Path
	}{name, paths})
	if err != nil {
		return "", err
	}
	key, err := r.k.LocalKey(pagesUse+" name", what)
	if err != nil {
		return "", err
	}
	return filepath.Join(index.RepoDir(r.opt.CacheDir, r.cfg.Repo.String()), "pages", fmt.Sprintf("%s%x", pagesPrefix, key[:16])), nil
}

// LocalPages are the pages of a write-only node's last snapshot. It is for one
// goroutine at a time.
type LocalPages struct {
	// Snapshot is what is known of the snapshot: ID, Name, Paths, Time, Tree and
	// Witness.
	Snapshot *Snapshot

	f       *os.File
	key     *seal.FrameKey
	hash    *chunk.Hasher
	rows    []byte // the table of blocks
	entries []byte
	blocks  map[uint32][][]byte // decoded
	order   []uint32            // of those, the oldest first
}

// LocalPages opens what this node kept of its last snapshot of that name and
// paths. None is fs.ErrNotExist; what is damaged, or was not written by these
// keys, chunk.ErrCorrupt.
func (r *Repo) LocalPages(name string, paths []Path) (*LocalPages, error) {
	file, err := r.pagesFile(name, paths)
	if err != nil {
		return nil, err
	}
	if file == "" {
		return nil, fmt.Errorf("local state is not kept: %w", fs.ErrNotExist)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	p, err := openPages(r.k, f)
	if err == nil && (p.Snapshot.Name != name || !slices.Equal(p.Snapshot.Paths, paths)) {
		err = fmt.Errorf("it is of other paths: %w", chunk.ErrCorrupt)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return p, nil
}

// openPages reads what stands in front of and behind the pages. It takes f over
// if it succeeds.
func openPages(k *seal.Keys, f *os.File) (*LocalPages, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	bad := fmt.Errorf("kept pages: %w", chunk.ErrCorrupt)
	head, tail := make([]byte, pagesHeadSize), make([]byte, pagesTail)
	if fi.Size() < int64(pagesHeadSize+pagesTail) {
		return nil, bad
	}
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	if _, err := f.ReadAt(tail, fi.Size()-pagesTail); err != nil {
		return nil, err
	}
	if string(head[:len(pagesHead)]) != pagesHead {
		return nil, bad
	}
	salt := head[len(pagesHead):]
	key, err := k.LocalKey(pagesUse, salt)
	if err != nil {
		return nil, err
	}
	p := &LocalPages{f: f, key: seal.NewFrameKey(key, salt), hash: k.Tree, blocks: map[uint32][][]byte{}}
	n, number := int64(binary.LittleEndian.Uint32(tail)), binary.LittleEndian.Uint32(tail[4:])
	last, err := p.read(number, fi.Size()-pagesTail-n, n, fi.Size())
	if err != nil {
		return nil, err
	}
	if len(last) != 2 || len(last[1]) != int(number)*pagesRow {
		return nil, bad
	}
	p.Snapshot = &Snapshot{}
	if err := decode("kept pages", last[0], p.Snapshot); err != nil {
		return nil, err
	}
	p.rows = last[1]
	return p, p.readEntries(fi.Size())
}

// readEntries reads the list of pages, all of it: 22 bytes for each.
func (p *LocalPages) readEntries(size int64) error {
	for i := range uint32(len(p.rows) / pagesRow) {
		row := p.rows[i*pagesRow:]
		if row[12] == 0 {
			continue
		}
		chunks, err := p.read(i, int64(binary.LittleEndian.Uint64(row)), int64(binary.LittleEndian.Uint32(row[8:])), size)
		if err != nil {
			return err
		}
		if len(chunks) != 1 || len(chunks[0])%pagesEntry != 0 {
			return fmt.Errorf("kept pages: block %d holds no list: %w", i, chunk.ErrCorrupt)
		}
		p.entries = append(p.entries, chunks[0]...)
	}
	return nil
}

// read reads a block of a file of that size.
func (p *LocalPages) read(number uint32, off, n, size int64) ([][]byte, error) {
	if off < int64(pagesHeadSize) || n > seal.MaxFrame+seal.FrameOverhead || off > size-n {
		return nil, fmt.Errorf("kept pages: block %d lies outside: %w", number, chunk.ErrCorrupt)
	}
	stored := make([]byte, n)
	if _, err := p.f.ReadAt(stored, off); err != nil {
		return nil, err
	}
	plain, err := p.key.Open(nil, number, stored)
	if err != nil {
		return nil, fmt.Errorf("kept pages: %w", err)
	}
	return seal.ParseFrame(plain)
}

// Page returns a page, which is not to be changed. One that was not kept is
// chunk.ErrMissing.
func (p *LocalPages) Page(id chunk.ID) ([]byte, error) {
	missing := fmt.Errorf("page %s was not kept: %w", id, chunk.ErrMissing)
	i := p.find(id)
	if i < 0 {
		return nil, missing
	}
	e := p.entries[i*pagesEntry:]
	number, at := binary.LittleEndian.Uint32(e[16:]), int(binary.LittleEndian.Uint16(e[20:]))
	pages, ok := p.blocks[number]
	if !ok {
		if int64(number)*pagesRow >= int64(len(p.rows)) {
			return nil, missing
		}
		row := p.rows[int(number)*pagesRow:]
		fi, err := p.f.Stat()
		if err != nil {
			return nil, err
		}
		if pages, err = p.read(number, int64(binary.LittleEndian.Uint64(row)), int64(binary.LittleEndian.Uint32(row[8:])), fi.Size()); err != nil {
			return nil, err
		}
		if len(p.order) == cachedBlocks {
			delete(p.blocks, p.order[0])
			p.order = p.order[1:]
		}
		p.blocks[number] = pages
		p.order = append(p.order, number)
	}
	if at >= len(pages) || p.hash.Sum(pages[at]) != id {
		return nil, missing
	}
	return pages[at], nil
}

// find returns the number of a page's entry, -1 for none.
func (p *LocalPages) find(id chunk.ID) int {
	lo, hi := 0, len(p.entries)/pagesEntry
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch bytes.Compare(p.entries[mid*pagesEntry:mid*pagesEntry+16], id[:16]) {
		case 0:
			return mid
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return -1
}

// Close lets the file go.
func (p *LocalPages) Close() error { return p.f.Close() }

// LocalPagesUsage returns how many bytes the kept pages below cacheDir take, by
// the name of the repository's directory.
func LocalPagesUsage(cacheDir string) (map[string]int64, error) {
	files, err := filepath.Glob(filepath.Join(cacheDir, "*", "pages", "*"))
	if err != nil {
		return nil, err
	}
	used := map[string]int64{}
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil && fi.Mode().IsRegular() {
			used[filepath.Base(filepath.Dir(filepath.Dir(f)))] += fi.Size()
		}
	}
	return used, nil
}

// ClearLocalPages removes the kept pages of a repository, and returns how many
// bytes they took. Runs that have them open keep reading what they have.
func ClearLocalPages(cacheDir, repoID string) (int64, error) {
	if _, ok := ParseID(repoID); !ok {
		return 0, nil // no repository's
	}
	used, err := LocalPagesUsage(cacheDir)
	if err != nil {
		return 0, err
	}
	if err := os.RemoveAll(filepath.Join(index.RepoDir(cacheDir, repoID), "pages")); err != nil {
		return 0, err
	}
	return used[repoID], nil
}
