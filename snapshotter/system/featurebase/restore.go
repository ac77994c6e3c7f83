package featurebase

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// filled is one restore that goes on.
type filled struct {
	*client
	opt     system.RestoreOptions
	workers int
	cluster *cluster
	primary string
	schema  *schema
	only    string // the one index to restore; empty: all
	files   []*item
	data    map[string]bool // the indexes that the snapshot has the data of

	mu     sync.Mutex
	failed []string // what did not come over, and why
}

// item is a file to restore.
type item struct {
	file
	n   tree.Node
	sum [sha256.Size]byte // of a shard or dataframe: of its bytes; of keys: of what is in them
}

// Restore implements system.System.
func (s *System) Restore(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	var res system.Result
	s.started(opt.Now, opt.Logf)
	if s.client == nil {
		return res, fmt.Errorf("--dir is for snapshots: `cutbank restore %s DIRECTORY` makes what featurebase restore takes: %w", opt.Name, system.ErrRefused)
	}
	if s.opt.tokenOnLine {
		opt.Warnf("others on this machine see the token of --auth-token: PILOSA_AUTH_TOKEN hides it")
	}
	r := &filled{client: s.client, opt: opt, workers: s.opt.concurrency}
	var err error
	if r.only, err = oneIndex(opt.Path, s.opt.index); err != nil {
		return res, err
	}
	if r.cluster, err = r.client.cluster(ctx); err != nil {
		return res, err
	}
	if err := info.Check(system.Info{Kind: Kind.Name, Version: r.cluster.version, Cluster: r.cluster.identity()}, opt); err != nil {
		return res, err
	}
	if !r.cluster.admin {
		return res, fmt.Errorf("the token is not of an admin, and no other may restore: give one in PILOSA_AUTH_TOKEN: %w", fs.ErrPermission)
	}
	if r.cluster.State != normal {
		return res, fmt.Errorf("the cluster is %s, and takes data only when it is NORMAL; not up are %s: %w", r.cluster.State, r.cluster.down(), system.ErrRefused)
	}
	if r.primary, err = r.cluster.primary(); err != nil {
		return res, err
	}
	if err := r.plan(ctx, n, info); err != nil {
		return res, err
	}
	there, err := r.mayFill(ctx)
	if err != nil {
		return res, err
	}
	if err := r.readAll(ctx); err != nil {
		return res, fmt.Errorf("nothing was changed: %w", err)
	}
	res.Items = uint64(len(r.files))
	for _, f := range r.files {
		res.Bytes += uint64(f.n.Attr().Size)
	}
	res.Notes = []string{"compare what `featurebase chksum --host` says of both clusters, if nothing was written to the old one since"}
	if opt.Mode != system.Full {
		res.Notes = append(res.Notes, fmt.Sprintf("a %s snapshot was restored: indexes whose data it does not have are empty, or as they were", opt.Mode))
	}
	if opt.DryRun {
		return res, nil
	}
	return res, r.fill(ctx, there)
}

// oneIndex returns which index a path, or an option, names.
func oneIndex(path, option string) (string, error) {
	if path == "" {
		return option, nil
	}
	part := strings.Split(path, "/")
	if part[0] != "indexes" || len(part) > 2 {
		return "", fmt.Errorf("%s cannot be restored alone: an index can, such as indexes/NAME: %w", path, system.ErrRefused)
	}
	if len(part) == 1 {
		return option, nil
	}
	if option != "" && option != part[1] {
		return "", fmt.Errorf("--index %s, and the path names %s: %w", option, part[1], system.ErrRefused)
	}
	return part[1], nil
}

// plan reads what is to be restored: the schema, and which files there are.
func (r *filled) plan(ctx context.Context, root tree.Node, info system.Info) error {
	n, err := root.Lookup(ctx, "schema")
	if err != nil {
		return err
	}
	if n.Attr().Size > answerLimit {
		return fmt.Errorf("a schema of %d bytes: %w", n.Attr().Size, system.ErrRefused)
	}
	text, err := io.ReadAll(&stored{ctx: ctx, n: n})
	if err != nil {
		return fmt.Errorf("the schema: %w", err)
	}
	if r.schema, err = parseSchema(text); err != nil {
		return err
	}
	if r.only != "" {
		if r.schema, err = r.schema.only(r.only); err != nil {
			return err
		}
	}
	for _, i := range r.schema.indexes {
		if r.cluster.width != 0 && i.Width != 0 && i.Width != r.cluster.width {
			return fmt.Errorf("index %s has shards of %d columns, and this cluster was built for %d: %w", i.Name, i.Width, r.cluster.width, system.ErrRefused)
		}
	}
	r.data = map[string]bool{}
	if r.opt.Mode == system.Dataless {
		return nil
	}
	if err := r.list(ctx, root, "", 0); err != nil {
		return err
	}
	for _, i := range r.schema.indexes {
		r.data[i.Name] = r.opt.Mode == system.Full || slices.Contains(strings.Fields(info.Facts["data_of"]), i.Name)
	}
	for _, f := range r.files {
		r.data[f.index] = true
	}
	slices.SortFunc(r.files, func(a, b *item) int { return strings.Compare(a.path(), b.path()) })
	return r.whole(info)
}

// list finds the files of the layout below a directory.
func (r *filled) list(ctx context.Context, dir tree.Node, path string, deep int) error {
	for n, err := range dir.Entries(ctx, 0) {
		if err != nil {
			return err
		}
		p := strings.TrimPrefix(path+"/"+n.Attr().Name, "/")
		if n.Attr().Kind == tree.Dir && deep < layoutDeep {
			if err := r.list(ctx, n, p, deep+1); err != nil {
				return err
			}
			continue
		}
		f, ok := parseFile(p)
		switch {
		case p == "schema":
		case !ok:
			r.opt.Warnf("%s is no part of a backup, and left out", p)
		case f.kind == allocFile && r.only != "":
			// IDs are given for all indexes at once.
		case f.kind != allocFile && r.schema.index(f.index) == nil:
			if r.only == "" {
				return fmt.Errorf("%s is of an index that the schema does not have: %w", p, system.ErrIncomplete)
			}
		default:
			r.files = append(r.files, &item{file: f, n: n})
		}
	}
	return nil
}

// whole fails if the snapshot has not what it says that it has.
func (r *filled) whole(info system.Info) error {
	parts, shards := map[file]part{}, 0
	for _, f := range r.files {
		parts[f.file] = part{}
		if f.kind == shardFile {
			shards++
		}
	}
	if want := info.Facts["shards"]; want != "" && r.only == "" && want != strconv.Itoa(shards) {
		return fmt.Errorf("the snapshot has %d shards, and had %s: %w", shards, want, system.ErrIncomplete)
	}
	return missingKeys(r.schema.without(func(i *indexInfo) bool { return !r.data[i.Name] }), parts)
}

// mayFill returns which of the indexes are there and are to be replaced. Those that the
// snapshot has only the schema of stay as they are.
func (r *filled) mayFill(ctx context.Context) ([]string, error) {
	now, err := r.schemaOf(ctx, r.primary)
	if err != nil {
		return nil, err
	}
	var there, others, kept []string
	for _, i := range now.indexes {
		switch {
		case r.schema.index(i.Name) == nil:
			others = append(others, i.Name)
		case r.data[i.Name]:
			there = append(there, i.Name)
		default:
			kept = append(kept, i.Name)
		}
	}
	others = append(others, kept...)
	for _, names := range [][]string{there, others, kept} {
		slices.Sort(names)
	}
	allocation := slices.ContainsFunc(r.files, func(f *item) bool { return f.kind == allocFile })
	switch {
	case len(there) > 0 && !r.opt.Force:
		return nil, fmt.Errorf("the cluster has %s already (%s): --force deletes and restores what the snapshot has of them: %w", plural(len(there), "index"), strings.Join(there, ", "), system.ErrRefused)
	case len(others) > 0 && allocation && !r.opt.Force:
		return nil, fmt.Errorf("the cluster has indexes of its own (%s), whose allocation of IDs would be replaced: restore index by index (%s:indexes/NAME), or --force: %w", strings.Join(others, ", "), r.opt.Name, system.ErrRefused)
	}
	for _, name := range kept {
		r.opt.Stepf("leave index %s, which is there, as it is: the snapshot has only its schema", name)
	}
	r.schema = r.schema.without(func(i *indexInfo) bool { return slices.Contains(kept, i.Name) })
	if err := r.foreign(now); err != nil {
		return nil, err
	}
	for _, name := range there {
		r.opt.Stepf("delete index %s, which is there", name)
	}
	return there, nil
}

// foreign refuses fields that have keys of an index that will not be there, which could
// not be made, and warns where only one of the two comes from the snapshot.
func (r *filled) foreign(now *schema) error {
	for _, i := range r.schema.indexes {
		for _, f := range i.Fields {
			other := f.Options.Foreign
			switch {
			case other == "" || r.schema.index(other) != nil:
			case now.index(other) == nil:
				return fmt.Errorf("field %s of index %s has keys of index %s, which is not there: restore that first, if a snapshot has it: %w", f.Name, i.Name, other, system.ErrRefused)
			default:
				r.opt.Warnf("field %s of index %s has keys of index %s, which is not restored and must be as it was then", f.Name, i.Name, other)
			}
		}
	}
	for _, i := range now.indexes {
		for _, f := range i.Fields {
			if other := f.Options.Foreign; r.schema.index(i.Name) == nil && r.schema.index(other) != nil {
				r.opt.Warnf("field %s of index %s, which stays as it is, has keys of index %s, which becomes as it was then", f.Name, i.Name, other)
			}
		}
	}
	return nil
}

// readAll reads everything once, before anything is changed: what is damaged is to be
// known before an index is deleted for it.
func (r *filled) readAll(ctx context.Context) error {
	return each(ctx, r.workers, r.files, func(ctx context.Context, _ int, f *item) error {
		at, size := storedAt{ctx, f.n}, f.n.Attr().Size
		var err error
		switch f.kind {
		case shardFile:
			if err = checkShard(at, size); err == nil {
				f.sum, err = digest(&stored{ctx: ctx, n: f.n})
			}
		case dataframeFile:
			f.sum, err = digest(&stored{ctx: ctx, n: f.n})
		default:
			f.sum, _, err = checkBolt(at, size)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.path(), err)
		}
		return nil
	})
}

func digest(r io.Reader) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	_, err = io.CopyBuffer(h, r, make([]byte, 1<<20))
	return [sha256.Size]byte(h.Sum(nil)), err
}

// fill changes the cluster.
func (r *filled) fill(ctx context.Context, there []string) error {
	for _, name := range there {
		if err := r.send(ctx, http.MethodDelete, r.primary, "/index/"+url.PathEscape(name), 0, bytesBody(nil)); err != nil && !said(err, http.StatusNotFound) {
			return err
		}
	}
	if err := r.gone(ctx, there); err != nil {
		return err
	}
	if err := r.make(ctx); err != nil {
		return fmt.Errorf("schema: %w", err)
	}
	if err := r.meant(ctx); err != nil {
		return err
	}
	for _, kinds := range [][]fileKind{{allocFile}, {shardFile}, {dataframeFile}, {partitionFile, fieldFile}} {
		if err := r.phase(ctx, kinds); err != nil {
			return err
		}
	}
	if len(r.failed) > 0 {
		slices.Sort(r.failed)
		return fmt.Errorf("%d of %d files did not come over whole, so the cluster has a part of the snapshot; --force begins anew; the first: %s: %w",
			len(r.failed), len(r.files), strings.Join(r.failed[:min(3, len(r.failed))], "; "), system.ErrIncomplete)
	}
	return r.shardsListed(ctx)
}

// make makes the indexes and fields.
func (r *filled) make(ctx context.Context) error {
	r.opt.Stepf("schema: %s", plural(len(r.schema.indexes), "index"))
	if len(r.schema.indexes) == 0 {
		return nil
	}
	first, rest, err := r.schema.made()
	if err != nil {
		return err
	}
	text, err := first.text()
	if err != nil {
		return err
	}
	if err := r.send(ctx, http.MethodPost, r.primary, "/schema", int64(len(text)), bytesBody(text)); err != nil {
		return err
	}
	if err := r.everywhere(ctx, first); err != nil {
		return err
	}
	for _, f := range rest {
		text, err := json.Marshal(map[string]any{"options": f.options})
		if err != nil {
			return err
		}
		if err := r.send(ctx, http.MethodPost, r.primary, "/index/"+url.PathEscape(f.index)+"/field/"+url.PathEscape(f.field), int64(len(text)), bytesBody(text)); err != nil {
			return err
		}
	}
	return r.everywhere(ctx, r.schema)
}
