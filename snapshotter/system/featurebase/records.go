package featurebase

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// allocation takes the IDs that were given to ingesters. Only one node has them, always
// the same; an index alone can do without, for it is restored without them, too.
func (r *run) allocation(ctx context.Context) error {
	base, err := r.cluster.primary()
	if err == nil {
		err = r.fetch(ctx, 0, file{kind: allocFile}, base, "/internal/idalloc/data", checkBoltOnly)
	}
	if err == nil || ctx.Err() != nil || errors.Is(err, errSpace) || errors.Is(err, fs.ErrPermission) {
		return err
	}
	if r.sys.opt.index == "" {
		return fmt.Errorf("the allocation of IDs, which %s alone has: %w (single indexes can be captured without it: --index)", base, err)
	}
	r.opt.Warnf("%v: the allocation of IDs is not in the snapshot", err)
	return nil
}

func checkBoltOnly(f io.ReaderAt, size int64) error {
	_, _, err := checkBolt(f, size)
	return err
}

// fetch takes one file from a node.
func (r *run) fetch(ctx context.Context, worker int, f file, base, path string, check func(io.ReaderAt, int64) error) error {
	err := r.try(ctx, base, func() error {
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
		shards, err := r.shardsOf(ctx, i.Name)
		if err != nil {
			return err
		}
		for _, n := range shards {
			list = append(list, file{kind: shardFile, index: i.Name, n: n})
		}
	}
	return each(ctx, r.sys.opt.concurrency, list, r.shard)
}

// shardsOf asks every node for the shards of an index. Each keeps its own list of those
// that others have, and one that was away when a shard was made may not have heard of
// it, without knowing that.
func (r *run) shardsOf(ctx context.Context, index string) ([]uint64, error) {
	var all []uint64
	var errs []error
	answers := 0
	for _, n := range up(r.cluster.Nodes) {
		var got struct{ Shards []uint64 }
		err := r.getJSON(ctx, n.base(), "/internal/index/"+url.PathEscape(index)+"/shards", &got)
		switch {
		case ctx.Err() != nil:
			return nil, err
		case err != nil && n.State == "STARTED":
			r.opt.Warnf("%v: shards of index %s are taken from what the other nodes know", err, index)
			fallthrough
		case err != nil:
			errs = append(errs, err)
			continue
		}
		answers++
		all = append(all, got.Shards...)
		slices.Sort(all)
		if all = slices.Compact(all); len(all) > maxShards {
			return nil, fmt.Errorf("index %s has %d shards, and up to %d are taken: %w", index, len(all), maxShards, system.ErrRefused)
		}
	}
	// What has replicas is known to those that have them.
	if limit := cmp.Or(r.cluster.replica, 2); answers == 0 || len(errs) >= limit {
		return nil, fmt.Errorf("index %s: %d of %d nodes do not say which shards they have: %w: %w", index, len(errs), len(r.cluster.Nodes), errors.Join(errs...), system.ErrIncomplete)
	}
	return all, nil
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
	return r.shardFrom(ctx, worker, f, nodes, path)
}

// shardFrom takes one shard from the first of its nodes that has something in it.
func (r *run) shardFrom(ctx context.Context, worker int, f file, nodes []*node, path string) error {
	var errs []error
	taken, empty := false, 0
	for _, n := range up(nodes) {
		err := r.fetch(ctx, worker, f, n.base(), path, checkShard)
		if ctx.Err() != nil || errors.Is(err, errSpace) {
			return err
		}
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
		err := r.try(ctx, n.base(), func() error {
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
	var errs []error
	none := false
	for _, n := range up(nodes) {
		if _, known := r.noDataframes.Load(n.base()); known {
			none = true
			continue
		}
		err := r.fetch(ctx, worker, f, n.base(), fmt.Sprintf("/index/%s/dataframe/%04d", url.PathEscape(f.index), f.n), func(io.ReaderAt, int64) error { return nil })
		var s *statusError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &s) && s.code == http.StatusBadRequest && strings.Contains(s.text, disabled):
			r.noDataframes.Store(n.base(), true)
			none = true
			continue
		case ctx.Err() != nil, errors.Is(err, errSpace):
			return err
		case errors.As(err, &s) && s.code == http.StatusNotFound:
			continue
		}
		errs = append(errs, err)
	}
	// A cluster uses dataframes on all of its nodes, or on none.
	if len(errs) > 0 && !none {
		return fmt.Errorf("%w: %w", errors.Join(errs...), system.ErrIncomplete)
	}
	return nil
}

// keys takes the keys of columns and rows, when all records that can refer to them
// were taken. A replica may not have the newest yet: each is asked of the node that
// the others follow.
func (r *run) keys(ctx context.Context) error {
	primary, err := r.cluster.primary()
	if err != nil {
		return err
	}
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
		base, query := primary, "&field="+url.QueryEscape(f.field)
		if f.kind == partitionFile {
			nodes, err := r.owners(ctx, partitionNodes(int(f.n)))
			if err != nil {
				return err
			}
			base, query = nodes[0].base(), "&partition="+strconv.FormatUint(f.n, 10)
		}
		return r.fetch(ctx, worker, f, base, "/internal/translate/data?index="+url.QueryEscape(f.index)+query, checkBoltOnly)
	})
}
