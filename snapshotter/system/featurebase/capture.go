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
	"strings"
	"sync"

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

	noDataframes sync.Map // addresses of nodes that do without
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
	if !cl.admin && r.sys.opt.index == "" {
		r.opt.Warnf("the token is not of an admin: of the indexes only those that it may read are in the snapshot, whatever its mode")
	}
	s, err := r.readSchema(ctx)
	if err != nil {
		return err
	}
	if err := s.epochs(false, r.opt.Warnf); err != nil {
		return err
	}
	if len(s.indexes) == 0 {
		r.opt.Warnf("the cluster of %s has no indexes, and the snapshot nothing: is it the right one?", r.base)
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
	s, err := r.schemaOf(ctx, r.base)
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
			r.opt.Warnf("whether something is being deleted is not known: %s/queries: %v", n.base(), err)
		}
		for _, q := range list {
			if deleting.MatchString(q.PQL) || deleting.MatchString(q.SQL) {
				r.opt.Warnf("records of index %s are being deleted: of those the snapshot may have parts; capture again when that is done", q.Index)
			}
		}
	}
}
