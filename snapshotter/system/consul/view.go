package consul

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// View is what people see of a stored snapshot. It reads the state once, from one end
// to the other, and keeps about half a KiB for each record; values and texts are read
// when they are asked for.
func View(ctx context.Context, root tree.Numbered, _ system.Info, opt system.ViewOptions) (tree.Numbered, error) {
	v := &view{ctx: context.WithoutCancel(ctx), secrets: opt.Secrets, dirs: map[string]*system.Node{}}
	// Consul keeps no times: what came from a record has none, so that only what was
	// changed differs between two snapshots.
	v.root = system.NewDir("", root.Attr().Mtime)
	var state tree.Node
	for n, err := range root.Entries(ctx, 0) {
		if err != nil {
			return nil, err
		}
		a := n.Attr()
		if a.Name == stateFile || a.Name == recordsFile {
			state = n
		}
		if a.Name != againFile {
			v.root.Add(system.NewFile(a.Name, a.Mtime, at{v.ctx, n}, a.Size, nil))
		}
	}
	if state == nil {
		return nil, damaged("the snapshot has neither %s nor %s", stateFile, recordsFile)
	}
	v.state = state
	if err := v.regenerated(ctx, root); err != nil {
		return nil, err
	}
	if err := v.records(stream(ctx, state), maxShown); err != nil {
		return nil, err
	}
	return v.root, v.root.Seal()
}

// view makes the nodes.
type view struct {
	ctx     context.Context
	root    *system.Node
	state   tree.Node
	secrets bool
	dirs    map[string]*system.Node
	keys    map[string][]item // by namespace and partition, as a path
	last    lastText
}

// item is a key's record and where its value is.
type item struct {
	key    string
	off    int64
	len    int64
	value  int64 // where it begins in the state
	size   int64
	absent bool
}

// maxShown is of how many records a view is made, and keys are chosen. Each costs about
// half a KiB of memory, and can be two bytes long where somebody means us ill.
const maxShown = 4 << 20

func tooMany(limit int) error {
	return fmt.Errorf("the state has more than %d records, which are too many to be shown one by one; a restore of everything takes them", limit)
}

// records adds all records. Keys come last, since a key's name depends on whether
// others are below it.
func (v *view) records(r io.Reader, limit int) error {
	v.keys = map[string][]item{}
	taken := map[string]int{}
	n := 0
	_, err := scan(r, func(rec *record, val any, p *pair) error {
		if n++; n > limit {
			return tooMany(limit)
		}
		if p != nil {
			base := keysIn(p)
			v.keys[base] = append(v.keys[base], item{key: p.key, off: rec.off, len: rec.len(), value: rec.off + 1 + p.valueOff, size: p.size, absent: p.absent})
			return nil
		}
		v.other(rec, val, taken)
		return nil
	})
	if err != nil {
		return err
	}
	for base, items := range v.keys {
		v.addKeys(base, items)
	}
	v.keys = nil
	return nil
}

// keysIn is the directory of the namespace's keys.
func keysIn(p *pair) string {
	dir := "kv"
	if p.namespace != "" && p.namespace != "default" {
		dir = "namespaces/" + fileName(p.namespace) + "/kv"
	}
	if p.partition != "" && p.partition != "default" {
		dir = "partitions/" + fileName(p.partition) + "/" + dir
	}
	return dir
}

// keyPaths sorts keys and gives each its path.
func keyPaths(items []item, each func(it *item, path string)) {
	slices.SortStableFunc(items, func(a, b item) int { return strings.Compare(a.key, b.key) })
	sorted := make([]string, len(items))
	for i := range items {
		sorted[i] = items[i].key
	}
	for i := range items {
		if i > 0 && items[i].key == items[i-1].key {
			continue // no server writes a key twice
		}
		each(&items[i], keyPath(items[i].key, hasBelow(sorted, items[i].key)))
	}
}

func (v *view) addKeys(base string, items []item) {
	keyPaths(items, func(it *item, p string) {
		dir, name := path.Split(p)
		var n *system.Node
		if it.absent {
			n = system.NewAbsent(name, tree.Time{}, it.size)
		} else {
			n = system.NewFile(name, tree.Time{}, section{at{v.ctx, v.state}, it.value, it.size}, it.size, nil)
		}
		off, size := it.off, it.len
		plain := p == it.key
		n.SetXattrsFunc(func(ctx context.Context) ([]tree.Xattr, error) { return v.keyXattrs(ctx, off, size, plain) })
		v.dir(base + "/" + strings.TrimSuffix(dir, "/")).Add(n)
	})
}

// section is a part of the state.
type section struct {
	at
	off, size int64
}

func (s section) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > s.size-off
	if short {
		p = p[:s.size-off]
	}
	n, err := s.at.ReadAt(p, s.off+off)
	if n == len(p) {
		err = nil
		if short {
			err = io.EOF
		}
	} else if err == io.EOF {
		err = io.ErrUnexpectedEOF // the state is longer
	}
	return n, err
}

// keyXattrs are what Consul keeps of a key beside its value.
func (v *view) keyXattrs(ctx context.Context, off, size int64, plain bool) ([]tree.Xattr, error) {
	body, err := v.body(ctx, off, size)
	if err != nil {
		return nil, err
	}
	p, err := parsePair(body)
	if err != nil {
		return nil, err
	}
	num := func(n uint64) []byte { return strconv.AppendUint(nil, n, 10) }
	xs := []tree.Xattr{{Name: "user.consul.create_index", Value: num(p.create)}, {Name: "user.consul.flags", Value: num(p.flags)}}
	if !plain {
		xs = append(xs, tree.Xattr{Name: "user.consul.key", Value: []byte(p.key)})
	}
	xs = append(xs, tree.Xattr{Name: "user.consul.lock_index", Value: num(p.lockIndex)}, tree.Xattr{Name: "user.consul.modify_index", Value: num(p.modify)})
	if p.session != "" {
		xs = append(xs, tree.Xattr{Name: "user.consul.session", Value: []byte(p.session)})
	}
	return xs, nil
}

// body reads a record without its type.
func (v *view) body(ctx context.Context, off, size int64) ([]byte, error) {
	if size < 1 || size > maxRecord {
		return nil, damaged("a record of %d bytes", size)
	}
	p := make([]byte, size-1)
	if n, err := v.state.ReadAt(ctx, p, off+1); n < len(p) {
		return nil, fmt.Errorf("a record at offset %d of the state: %w", off, err)
	}
	return p, nil
}

// dir returns the directory of a path, and makes it.
func (v *view) dir(p string) *system.Node {
	p = strings.Trim(p, "/")
	if p == "" {
		return v.root
	}
	if d := v.dirs[p]; d != nil {
		return d
	}
	parent, name := path.Split(p)
	d := system.NewDir(name, tree.Time{})
	v.dirs[p] = d
	v.dir(parent).Add(d)
	return d
}

// other adds a record that is no key. Where the names of two are the same the later
// one's has a number.
func (v *view) other(rec *record, val any, taken map[string]int) {
	parts := place(rec.kind, val, rec.body)
	for i := range parts {
		parts[i] = fileName(parts[i])
	}
	suffix := ".json"
	if val == nil {
		suffix = ".bin"
	}
	p := strings.Join(parts, "/")
	taken[p]++
	if n := taken[p]; n > 1 {
		p += "%-" + strconv.Itoa(n) // escaped names have no such thing
	}
	dir, name := path.Split(p + suffix)
	t := &recordText{v: v, kind: rec.kind, off: rec.off, size: rec.len(), raw: val == nil}
	var n *system.Node
	var size int64
	out := false
	if val == nil {
		size, out = isLeftOut(decode(rec.body))
	}
	switch {
	case out:
		n = system.NewAbsent(name, tree.Time{}, size)
	case !v.secrets && hidden(rec.kind, val):
		n = system.NewFile(name, tree.Time{}, strings.NewReader(masked+"\n"), int64(len(masked)+1), nil)
	case val == nil:
		n = system.NewFile(name, tree.Time{}, t, int64(len(rec.body)), nil)
	default:
		n = system.NewFile(name, tree.Time{}, t, int64(len(v.json(val))), nil)
	}
	v.dir(dir).Add(n)
}

func (v *view) json(val any) []byte {
	if !v.secrets {
		val = mask(val)
	}
	return render(val)
}

// recordText is the text of a record, made each time that it is read.
type recordText struct {
	v         *view
	kind      uint8
	off, size int64
	raw       bool
}

// lastText keeps the text that was read last: files are read in pieces.
type lastText struct {
	sync.Mutex
	off int64
	p   []byte
}

func (t *recordText) ReadAt(p []byte, off int64) (int, error) {
	l := &t.v.last
	l.Lock()
	defer l.Unlock()
	if l.p == nil || l.off != t.off {
		body, err := t.v.body(t.v.ctx, t.off, t.size)
		if err != nil {
			return 0, err
		}
		if !t.raw {
			body = t.v.json(open(t.kind, body))
		}
		l.off, l.p = t.off, body
	}
	return bytes.NewReader(l.p).ReadAt(p, off)
}

// regenerated adds the archive where it is not stored but can be written again.
func (v *view) regenerated(ctx context.Context, root tree.Node) error {
	n, err := root.Lookup(ctx, againFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // of a light or dataless snapshot
	}
	if err != nil {
		return err
	}
	g, err := readAgain(ctx, n)
	if err != nil || !g.Regenerates {
		return err
	}
	a, err := storedArchive(ctx, root, g)
	if err != nil {
		return err
	}
	v.root.Add(system.NewFile(archiveFile, root.Attr().Mtime, &writer{ctx: v.ctx, a: a, again: g, state: v.state}, g.Size, nil))
	return nil
}

func readAgain(ctx context.Context, n tree.Node) (again, error) {
	p, err := wholeFile(ctx, n, maxSums)
	if err != nil {
		return again{}, err
	}
	return parseAgain(p)
}

// wholeFile reads a small stored file.
func wholeFile(ctx context.Context, n tree.Node, limit int64) ([]byte, error) {
	size := n.Attr().Size
	if size > limit {
		return nil, damaged("%s has %d bytes", n.Attr().Name, size)
	}
	p := make([]byte, size)
	if n, err := n.ReadAt(ctx, p, 0); n < len(p) {
		return nil, err
	}
	return p, nil
}

// storedArchive is what is needed to write a stored archive again.
func storedArchive(ctx context.Context, root tree.Node, g again) (*archive, error) {
	a := &archive{mode: g.Mode, mtimes: g.Mtimes}
	for name, to := range map[string]*[]byte{metaFile: &a.metaJSON, sumsFile: &a.sums} {
		n, err := root.Lookup(ctx, name)
		if err != nil {
			return nil, err
		}
		if *to, err = wholeFile(ctx, n, maxMeta); err != nil {
			return nil, err
		}
	}
	var err error
	a.meta, err = parseMeta(a.metaJSON)
	return a, err
}
