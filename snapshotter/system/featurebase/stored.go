package featurebase

import (
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

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
	if !r.cluster.admin {
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
