package featurebase

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// phase restores the files of some kinds, to all nodes that own them. What fails is
// remembered, and the others go on.
func (r *filled) phase(ctx context.Context, kinds []fileKind) error {
	var list []*item
	size := int64(0)
	for _, f := range r.files {
		if slices.Contains(kinds, f.kind) {
			list = append(list, f)
			size += f.n.Attr().Size
		}
	}
	if len(list) == 0 {
		return nil
	}
	what := map[fileKind]string{allocFile: "allocation of IDs", shardFile: "shards", dataframeFile: "dataframes", partitionFile: "keys"}[kinds[0]]
	r.opt.Stepf("%s: %s, %d bytes", what, plural(len(list), "file"), size)
	return each(ctx, r.workers, list, func(ctx context.Context, _ int, f *item) error {
		err := r.place(ctx, f)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errStored) {
			return fmt.Errorf("%s: %w", f.path(), err)
		}
		if err != nil {
			r.mu.Lock()
			r.failed = append(r.failed, f.path()+": "+err.Error())
			r.mu.Unlock()
		}
		return nil
	})
}

// place sends a file to all nodes that own it, and reads it back from each.
func (r *filled) place(ctx context.Context, f *item) error {
	nodes := r.cluster.Nodes
	var to, back string
	var err error
	index, number := url.PathEscape(f.index), strconv.FormatUint(f.file.n, 10)
	switch f.kind {
	case shardFile:
		nodes, err = r.owners(ctx, shardNodes(f.index, f.file.n))
		to, back = "/internal/restore/"+index+"/"+number, "/internal/index/"+index+"/shard/"+number+"/snapshot"
	case dataframeFile:
		nodes, err = r.owners(ctx, shardNodes(f.index, f.file.n))
		to, back = "/internal/dataframe/restore/"+index+"/"+number, fmt.Sprintf("/index/%s/dataframe/%04d", index, f.file.n)
	case partitionFile:
		nodes, err = r.owners(ctx, partitionNodes(int(f.file.n)))
		to, back = "/internal/translate/index/"+index+"/"+number, "/internal/translate/data?index="+url.QueryEscape(f.index)+"&partition="+number
	case fieldFile:
		to, back = "/internal/translate/field/"+index+"/"+url.PathEscape(f.field), "/internal/translate/data?index="+url.QueryEscape(f.index)+"&field="+url.QueryEscape(f.field)
	case allocFile:
		nodes = slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return n.base() != r.primary })
		to, back = "/internal/idalloc/restore", "/internal/idalloc/data"
	}
	if err != nil {
		return err
	}
	for i, n := range nodes {
		// This restore has failed already, and is to be begun anew.
		if _, lost := r.lost.Load(n.base()); lost {
			return fmt.Errorf("%s does not answer any more: %w", n.base(), system.ErrIncomplete)
		}
		if err := r.upload(ctx, f, n.base(), to); err != nil {
			return err
		}
		// A partition's keys are given by the first of its nodes only: the others
		// send us there.
		if f.kind == partitionFile && i > 0 {
			continue
		}
		if err := r.same(ctx, f, n.base(), back); err != nil {
			return err
		}
	}
	return nil
}

// upload sends a file to a node. Nodes say 400 to whatever fails in them, so that is
// tried again, too, though not for long.
func (r *filled) upload(ctx context.Context, f *item, base, path string) error {
	for attempt := 1; ; attempt++ {
		err := r.send(ctx, http.MethodPost, base, path, f.n.Attr().Size, func() io.Reader { return &stored{ctx: ctx, n: f.n} })
		if attempt == 3 || !said(err, http.StatusBadRequest) || ctx.Err() != nil {
			return err
		}
		r.logf("again: %v", err)
		pause(ctx, time.Second)
	}
}

// same reads a file back from a node that was sent it.
func (r *filled) same(ctx context.Context, f *item, base, path string) error {
	return r.try(ctx, base, func() error {
		resp, err := r.request(ctx, http.MethodGet, base, path, nil, 0)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var sum [sha256.Size]byte
		if f.kind == shardFile || f.kind == dataframeFile {
			sum, err = digest(resp.Body)
		} else {
			sum, err = r.boltDigest(resp.Body, f.n.Attr().Size)
		}
		if err != nil {
			return err
		}
		if sum != f.sum {
			return fmt.Errorf("%s has other contents after it was restored: is something writing to the cluster?: %w", base, system.ErrIncomplete)
		}
		return nil
	})
}

// everywhere waits until all nodes know all indexes and fields: a node that does not
// would lose what it is sent of them.
func (r *filled) everywhere(ctx context.Context, s *schema) error {
	err := r.await(ctx, func(now *schema) string {
		for _, i := range s.indexes {
			have := now.index(i.Name)
			if have == nil {
				return "index " + i.Name + " is not there"
			}
			for _, f := range i.Fields {
				if have.field(f.Name) == nil {
					return "field " + f.Name + " of index " + i.Name + " is not there"
				}
			}
		}
		return ""
	})
	// What the nodes say of the schema is what their etcd has. Only one that has
	// loaded an index knows of its shards.
	for _, i := range s.indexes {
		for _, n := range r.cluster.Nodes {
			if err == nil {
				_, err = r.get(ctx, n.base(), "/internal/index/"+url.PathEscape(i.Name)+"/shards")
			}
		}
	}
	return err
}

// meant says whether the fields were made as they are to be: their data would be read as
// other values otherwise.
func (r *filled) meant(ctx context.Context) error {
	now, err := r.schemaOf(ctx, r.primary)
	if err != nil {
		return err
	}
	for _, i := range r.schema.indexes {
		have := now.index(i.Name)
		if have == nil {
			return fmt.Errorf("index %s was dropped while it was restored: %w", i.Name, system.ErrIncomplete)
		}
		wrong, other := i.differs(have)
		for _, text := range other {
			r.opt.Warnf("%s", text)
		}
		if len(wrong) > 0 {
			return fmt.Errorf("the cluster makes other fields than those that were captured, and would read other values in their data: %s: %w", strings.Join(wrong[:min(3, len(wrong))], "; "), system.ErrIncomplete)
		}
	}
	return nil
}

// gone waits until no node knows what was deleted.
func (r *filled) gone(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	return r.await(ctx, func(now *schema) string {
		for _, name := range names {
			if now.index(name) != nil {
				return "index " + name + " is still there"
			}
		}
		return ""
	})
}

// await asks all nodes until none has a complaint, for the retry period at most.
func (r *filled) await(ctx context.Context, complaint func(*schema) string) error {
	for _, n := range r.cluster.Nodes {
		err := r.try(ctx, n.base(), func() error {
			p, err := r.once(ctx, n.base(), "/schema")
			if err != nil {
				return err
			}
			now, err := parseSchema(p)
			if err != nil {
				return err
			}
			if text := complaint(now); text != "" {
				return fmt.Errorf("%s: %s: %w", n.base(), text, system.ErrIncomplete)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// shardsListed asks every node whether it knows of every shard: one that does not
// leaves it out of what it answers.
func (r *filled) shardsListed(ctx context.Context) error {
	for _, i := range r.schema.indexes {
		var want []uint64
		for _, f := range r.files {
			if f.kind == shardFile && f.index == i.Name && f.n.Attr().Size > emptyShard {
				want = append(want, f.file.n)
			}
		}
		for _, n := range r.cluster.Nodes {
			err := r.try(ctx, n.base(), func() error {
				var got struct{ Shards []uint64 }
				if err := r.getJSON(ctx, n.base(), "/internal/index/"+url.PathEscape(i.Name)+"/shards", &got); err != nil {
					return err
				}
				for _, s := range want {
					if !slices.Contains(got.Shards, s) {
						return fmt.Errorf("%s does not know of shard %d of index %s: %w", n.base(), s, i.Name, system.ErrIncomplete)
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// boltDigest reads a BoltDB file that a node sends, through scratch space.
func (r *filled) boltDigest(body io.Reader, size int64) (sum [sha256.Size]byte, err error) {
	f, err := os.CreateTemp(r.opt.Scratch, "keys-")
	if err != nil {
		return sum, fmt.Errorf("%w: %w", errSpace, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	// BoltDB makes its files larger when it opens them, by 16 MiB at a time at least.
	n, err := io.Copy(f, io.LimitReader(body, 2*size+(64<<20)))
	if err != nil {
		return sum, err
	}
	sum, _, err = checkBolt(f, n)
	return sum, err
}
