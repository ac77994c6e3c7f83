package featurebase

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// capture is what was taken, in scratch space or in a directory.
type capture struct {
	info  system.Info
	root  *system.Node
	spool *spool
}

// Root implements system.Capture.
func (c *capture) Root() tree.Node { return c.root }

// Finish implements system.Capture: all was checked when it was taken.
func (c *capture) Finish(context.Context) (system.Info, error) { return c.info, nil }

// Close implements system.Capture. Nothing is pinned in the cluster.
func (c *capture) Close(context.Context, bool) error {
	if c.spool == nil {
		return nil
	}
	return c.spool.Close()
}

// run is one capture that goes on.
type run struct {
	*client
	opt     system.CaptureOptions
	sys     *System
	cluster *cluster
	spool   *spool
	schema  *schema // as it was when shards were last asked for
	done    map[string]*indexInfo

	noDataframes atomic.Bool
	mu           sync.Mutex
	parts        map[file]part
	empty        []string
}

// part is one file that was captured.
type part struct {
	data io.ReaderAt // nil: left out
	size int64
}

// Capture implements system.System.
func (s *System) Capture(ctx context.Context, opt system.CaptureOptions) (system.Capture, error) {
	s.started(opt.Now, opt.Logf)
	if s.client == nil {
		return s.captureDir(ctx, opt)
	}
	if s.opt.tokenOnLine {
		opt.Warnf("others on this machine see the token of --auth-token: PILOSA_AUTH_TOKEN hides it")
	}
	r := &run{client: s.client, opt: opt, sys: s, done: map[string]*indexInfo{}, parts: map[file]part{}}
	var err error
	if r.cluster, err = r.client.cluster(ctx); err != nil {
		return nil, err
	}
	if r.spool, err = newSpool(opt.Scratch, s.opt.concurrency); err != nil {
		return nil, err
	}
	c := &capture{spool: r.spool}
	err = r.capture(ctx)
	if err == nil {
		c.info = r.info()
		c.root, err = build(r.schema, r.parts, tree.TimeOf(opt.Now()))
	}
	if err != nil {
		return nil, errors.Join(err, c.Close(ctx, false))
	}
	return c, nil
}

// capture takes all in the order that keeps what refers to each other whole: IDs that
// were given, then the records, then the keys that stand for them.
func (r *run) capture(ctx context.Context) error {
	if err := r.ready(ctx); err != nil {
		return err
	}
	r.deletes(ctx)
	if r.opt.Mode != system.Dataless {
		if err := r.allocation(ctx); err != nil {
			return err
		}
	}
	// Indexes may be made meanwhile, and be referred to by what is captured next.
	for round := 0; ; round++ {
		s, err := r.readSchema(ctx)
		if err != nil {
			return err
		}
		r.schema = s
		if err := r.sameIndexes(); err != nil {
			return err
		}
		if len(r.done) == len(s.indexes) {
			break
		}
		if round == 8 {
			return fmt.Errorf("indexes are made faster than they can be captured: %w", system.ErrIncomplete)
		}
		if err := r.records(ctx); err != nil {
			return err
		}
	}
	if r.opt.Mode != system.Dataless {
		if err := r.keys(ctx); err != nil {
			return err
		}
		if err := r.stillThere(ctx); err != nil {
			return err
		}
	}
	r.deletes(ctx)
	if len(r.empty) > 0 {
		slices.Sort(r.empty)
		r.opt.Warnf("%s listed, but empty on every node that has them, such as %s: so they are after a node lost its disk, or if all in them was deleted", plural(len(r.empty), "shard"), r.empty[0])
	}
	r.lookups(ctx)
	return nil
}

// lookups warns of an external lookup database. A node says that it has none before it
// says that a lookup without a query is none, which is as far as ours goes.
func (r *run) lookups(ctx context.Context) {
	if len(r.schema.indexes) == 0 {
		return
	}
	path := "/index/" + url.PathEscape(r.schema.indexes[0].Name) + "/query"
	const query = "ExternalLookup()"
	resp, err := r.request(ctx, http.MethodPost, r.base, path, strings.NewReader(query), int64(len(query)))
	if err == nil {
		resp.Body.Close()
	}
	var s *statusError
	switch {
	case errors.As(err, &s) && strings.Contains(s.text, "not configured"):
	case errors.As(err, &s) && strings.Contains(s.text, "missing query"):
		r.opt.Warnf("the cluster has an external lookup database (lookup-db-dsn), which is not in the snapshot: back it up by itself")
	default:
		r.opt.Logf("whether there is an external lookup database is not known: %v", err)
	}
}

// ready refuses a cluster that would not give all that it has.
func (r *run) ready(ctx context.Context) error {
	cl := r.cluster
	if cl.storage != "" && cl.storage != "rbf" {
		return fmt.Errorf("the storage of this cluster is %q, and only rbf can be captured: %w", cl.storage, system.ErrRefused)
	}
	// A node leaves out of the schema what the token may not read.
	if cl.storage == "" && r.sys.opt.index == "" {
		r.opt.Warnf("the token is not of an admin: of the indexes only those that it may read are in the snapshot, whatever its mode")
	}
	s, err := r.readSchema(ctx)
	if err != nil {
		return err
	}
	for _, name := range r.opt.Data {
		if s.index(name) == nil {
			return fmt.Errorf("--data %s: there is no index of that name (fields share the files of their index): %w", name, system.ErrRefused)
		}
	}
	if cl.State == normal {
		return nil
	}
	if r.opt.Mode == system.Dataless {
		r.opt.Warnf("the cluster is %s: not up are %s", cl.State, cl.down())
		return nil
	}
	for _, i := range s.indexes {
		if r.wanted(i.Name) && i.keyed() {
			return fmt.Errorf("the cluster is %s, and so long the keys of index %s cannot be read: bring back %s, or take indexes without keys (--index): %w", cl.State, i.Name, cl.down(), system.ErrRefused)
		}
	}
	r.opt.Warnf("the cluster is %s (not up are %s): shards are taken from the nodes that are", cl.State, cl.down())
	return nil
}

// wanted reports whether the data of an index is to be captured.
func (r *run) wanted(index string) bool {
	return r.opt.Mode == system.Full || r.opt.Mode == system.Light && slices.Contains(r.opt.Data, index)
}

func (r *run) readSchema(ctx context.Context) (*schema, error) {
	p, err := r.get(ctx, r.base, "/schema")
	if err != nil {
		return nil, err
	}
	s, err := parseSchema(p)
	if err == nil && r.sys.opt.index != "" {
		return s.only(r.sys.opt.index)
	}
	return s, err
}

// sameIndexes fails if what was captured before is not there any more: the keys of
// what was dropped are gone, and an index of the same name has others.
func (r *run) sameIndexes() error {
	for name, was := range r.done {
		now := r.schema.index(name)
		if now == nil || now.Created != was.Created {
			return fmt.Errorf("index %s was dropped while it was captured: try again, and have nothing dropped or deleted meanwhile: %w", name, system.ErrIncomplete)
		}
		for _, f := range was.Fields {
			if g := now.field(f.Name); g == nil || g.Created != f.Created {
				return fmt.Errorf("field %s of index %s was dropped while it was captured: try again, and have nothing dropped or deleted meanwhile: %w", f.Name, name, system.ErrIncomplete)
			}
		}
	}
	return nil
}

// stillThere asks once more when everything was taken.
func (r *run) stillThere(ctx context.Context) error {
	kept := r.schema
	for _, i := range kept.indexes {
		r.done[i.Name] = i
	}
	var err error
	if r.schema, err = r.readSchema(ctx); err == nil {
		err = r.sameIndexes()
	}
	r.schema = kept
	return err
}

// deleting finds calls that delete records.
var deleting = regexp.MustCompile(`(?i)\bdelete\s*\(|^\s*(delete|drop)\s`)

// deletes warns of what is deleted just now, on each node that tells.
func (r *run) deletes(ctx context.Context) {
	for _, n := range r.cluster.Nodes {
		if n.State != "STARTED" {
			continue
		}
		resp, err := r.request(ctx, http.MethodGet, n.base(), "/queries", nil, 0)
		if err != nil {
			r.opt.Logf("whether something is being deleted is not known: %v", err)
			continue
		}
		var list []struct{ PQL, SQL, Index string }
		err = json.NewDecoder(io.LimitReader(resp.Body, answerLimit)).Decode(&list)
		resp.Body.Close()
		if err != nil {
			r.opt.Logf("whether something is being deleted is not known: %s/queries: %v", n.base(), err)
		}
		for _, q := range list {
			if deleting.MatchString(q.PQL) || deleting.MatchString(q.SQL) {
				r.opt.Warnf("records of index %s are being deleted: of those the snapshot may have parts; capture again when that is done", q.Index)
			}
		}
	}
}

// allocation takes the IDs that were given to ingesters.
func (r *run) allocation(ctx context.Context) error {
	f := file{kind: allocFile}
	return r.fetch(ctx, 0, f, r.primaryNow, "/internal/idalloc/data", checkBoltOnly)
}

func checkBoltOnly(f io.ReaderAt, size int64) error {
	_, _, err := checkBolt(f, size)
	return err
}

// primaryNow asks who speaks for the cluster: another node, soon after one was lost.
func (r *run) primaryNow(ctx context.Context) (string, error) {
	var cl cluster
	if err := r.getJSON(ctx, r.base, "/status", &cl); err != nil {
		return "", err
	}
	for _, n := range cl.Nodes {
		if n != nil && n.Primary {
			return n.base(), nil
		}
	}
	return "", fmt.Errorf("the cluster has no primary node now: %w", system.ErrIncomplete)
}

// from is a node that does not change.
func from(n *node) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return n.base(), nil }
}

// fetch takes one file from a node.
func (r *run) fetch(ctx context.Context, worker int, f file, node func(context.Context) (string, error), path string, check func(io.ReaderAt, int64) error) error {
	err := r.try(ctx, func() error {
		base, err := node(ctx)
		if err != nil {
			return err
		}
		resp, err := r.request(ctx, http.MethodGet, base, path, nil, 0)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err := r.spool.take(worker, resp.Body, check)
		if err != nil {
			return fmt.Errorf("GET %s%s: %w", base, path, err)
		}
		r.keep(f, part{data, data.Size()})
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", f.path(), err)
	}
	return nil
}

func (r *run) keep(f file, p part) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parts[f] = p
}

// records takes the shards of all indexes that are not captured yet.
func (r *run) records(ctx context.Context) error {
	var list []file
	for _, i := range r.schema.indexes {
		if r.done[i.Name] != nil {
			continue
		}
		r.done[i.Name] = i
		if !r.wanted(i.Name) && r.opt.Mode != system.Dataless {
			continue
		}
		var got struct{ Shards []uint64 }
		if err := r.getJSON(ctx, r.base, "/internal/index/"+url.PathEscape(i.Name)+"/shards", &got); err != nil {
			return err
		}
		for _, n := range got.Shards {
			list = append(list, file{kind: shardFile, index: i.Name, n: n})
		}
	}
	return each(ctx, r.sys.opt.concurrency, list, r.shard)
}

// shard takes one shard, and its dataframe, from the nodes that own it.
func (r *run) shard(ctx context.Context, worker int, f file) error {
	nodes, err := r.owners(ctx, shardNodes(f.index, f.n))
	if err != nil {
		return err
	}
	path := "/internal/index/" + url.PathEscape(f.index) + "/shard/" + strconv.FormatUint(f.n, 10) + "/snapshot"
	if r.opt.Mode == system.Dataless {
		return r.shardSize(ctx, f, nodes, path)
	}
	var errs []error
	taken, empty := false, 0
	for _, n := range up(nodes) {
		err := r.fetch(ctx, worker, f, from(n), path, checkShard)
		if err != nil {
			errs = append(errs, err)
			r.opt.Warnf("%v: asking the next node that has it", err)
			continue
		}
		taken = true
		if r.part(f).size > emptyShard {
			break
		}
		empty++
	}
	switch {
	case !taken:
		return fmt.Errorf("shard %d of index %s: no node that has it gives it: %w: %w", f.n, f.index, errors.Join(errs...), system.ErrIncomplete)
	case empty > 0 && empty < len(nodes) && r.part(f).size <= emptyShard:
		return fmt.Errorf("shard %d of index %s is listed, but empty on %d of its %d nodes, and the others do not answer: %w", f.n, f.index, empty, len(nodes), system.ErrIncomplete)
	case empty == len(nodes):
		r.mu.Lock()
		r.empty = append(r.empty, f.index+"/"+strconv.FormatUint(f.n, 10))
		r.mu.Unlock()
	case empty > 0:
		r.opt.Warnf("shard %d of index %s is empty on one of its nodes: taken from another", f.n, f.index)
	}
	return r.dataframe(ctx, worker, file{kind: dataframeFile, index: f.index, n: f.n}, nodes)
}

// up puts the nodes that are up before those that are not known to be.
func up(nodes []*node) []*node {
	list := slices.Clone(nodes)
	slices.SortStableFunc(list, func(a, b *node) int {
		return strings.Compare(strconv.FormatBool(a.State != "STARTED"), strconv.FormatBool(b.State != "STARTED"))
	})
	return list
}

func (r *run) part(f file) part {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.parts[f]
}

// shardSize learns how large a shard is from its first page.
func (r *run) shardSize(ctx context.Context, f file, nodes []*node, path string) error {
	var errs []error
	for _, n := range up(nodes) {
		err := r.try(ctx, func() error {
			resp, err := r.request(ctx, http.MethodGet, n.base(), path, nil, 0)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			var head [32]byte
			if _, err := io.ReadFull(resp.Body, head[:]); err != nil {
				return err
			}
			size, err := rbfSize(head[:])
			r.keep(f, part{nil, size})
			return err
		})
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("%s: %w: %w", f.path(), errors.Join(errs...), system.ErrIncomplete)
}

// dataframe takes the dataframe of a shard, if there is one: a node says 400 where
// dataframes are not in use at all, and 404 where this shard has none.
func (r *run) dataframe(ctx context.Context, worker int, f file, nodes []*node) error {
	if r.noDataframes.Load() {
		return nil
	}
	var errs []error
	for _, n := range up(nodes) {
		err := r.fetch(ctx, worker, f, from(n), fmt.Sprintf("/index/%s/dataframe/%04d", url.PathEscape(f.index), f.n), func(io.ReaderAt, int64) error { return nil })
		var s *statusError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &s) && s.code == http.StatusBadRequest && strings.Contains(s.text, disabled):
			r.noDataframes.Store(true)
			return nil
		case errors.As(err, &s) && s.code == http.StatusNotFound:
			continue
		}
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", errors.Join(errs...), system.ErrIncomplete)
	}
	return nil
}

// keys takes the keys of columns and rows, when all records that can refer to them
// were taken. A replica may not have the newest yet: each is asked of the node that
// the others follow.
func (r *run) keys(ctx context.Context) error {
	var list []file
	for _, i := range r.schema.indexes {
		if !r.wanted(i.Name) {
			continue
		}
		if i.Options.Keys {
			for n := range uint64(partitions) {
				list = append(list, file{kind: partitionFile, index: i.Name, n: n})
			}
		}
		for _, f := range i.Fields {
			if f.Options.Keys {
				list = append(list, file{kind: fieldFile, index: i.Name, field: f.Name})
			}
		}
	}
	return each(ctx, r.sys.opt.concurrency, list, func(ctx context.Context, worker int, f file) error {
		base, query := r.primaryNow, "&field="+url.QueryEscape(f.field)
		if f.kind == partitionFile {
			nodes, err := r.owners(ctx, partitionNodes(int(f.n)))
			if err != nil {
				return err
			}
			base, query = from(nodes[0]), "&partition="+strconv.FormatUint(f.n, 10)
		}
		return r.fetch(ctx, worker, f, base, "/internal/translate/data?index="+url.QueryEscape(f.index)+query, checkBoltOnly)
	})
}

// info is what the record keeps.
func (r *run) info() system.Info {
	count := map[fileKind]int{}
	for f := range r.parts {
		count[f.kind]++
	}
	var names, nodes []string
	for _, i := range r.schema.indexes {
		names = append(names, i.Name)
	}
	for _, n := range r.cluster.Nodes {
		nodes = append(nodes, n.base())
	}
	facts := map[string]string{"state": r.cluster.State, "nodes": strconv.Itoa(len(nodes)), "node_addresses": strings.Join(nodes, " "),
		"indexes": strconv.Itoa(len(names)), "shards": strconv.Itoa(count[shardFile]), "dataframes": strconv.Itoa(count[dataframeFile]),
		"key_files": strconv.Itoa(count[partitionFile] + count[fieldFile])}
	if r.cluster.storage == "" {
		facts["seen"] = "what the token may read"
	}
	if r.cluster.replica > 0 {
		facts["replicas"] = strconv.Itoa(r.cluster.replica)
		facts["shard_width"] = strconv.FormatUint(r.cluster.width, 10)
	}
	if r.sys.opt.index != "" {
		facts["only_index"] = r.sys.opt.index
	}
	if r.opt.Mode == system.Light {
		facts["data_of"] = strings.Join(r.opt.Data, " ")
	}
	return system.Info{Kind: Kind.Name, Version: r.cluster.version, Cluster: r.cluster.identity(), Facts: facts}
}

// build makes the tree of the layout.
func build(s *schema, parts map[file]part, mtime tree.Time) (*system.Node, error) {
	root := system.NewDir("", mtime)
	text, err := s.text()
	if err != nil {
		return nil, err
	}
	root.Add(system.NewFile("schema", mtime, strings.NewReader(string(text)), int64(len(text)), nil))
	dirs := map[string]*system.Node{"": root}
	var dir func(path string) *system.Node
	dir = func(path string) *system.Node {
		if d := dirs[path]; d != nil {
			return d
		}
		parent, name := "", path
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			parent, name = path[:i], path[i+1:]
		}
		d := system.NewDir(name, mtime)
		d.SetOwner(0o750, 0, 0)
		dir(parent).Add(d)
		dirs[path] = d
		return d
	}
	for f, p := range parts {
		parent, name := "", f.path()
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			parent, name = name[:i], name[i+1:]
		}
		switch {
		case p.data == nil:
			dir(parent).Add(system.NewAbsent(name, mtime, p.size))
		case f.kind == dataframeFile:
			dir(parent).Add(system.NewFile(name, mtime, p.data, p.size, nil))
		default:
			dir(parent).Add(system.NewPaged(name, mtime, p.data, p.size, pageSize))
		}
	}
	return root, root.Seal()
}
