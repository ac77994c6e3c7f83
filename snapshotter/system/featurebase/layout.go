package featurebase

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// The layout is that of "featurebase backup":
//
//	schema                              JSON, {"indexes": [...]}
//	idalloc                             BoltDB
//	indexes/INDEX/shards/NNNN           RBF
//	indexes/INDEX/dataframe/NNNN        Arrow or Parquet, where dataframes are in use
//	indexes/INDEX/translate/NNNN        BoltDB, 256 of them where columns have keys
//	indexes/INDEX/fields/FIELD/translate BoltDB, where the field's rows have keys

// partitions are what the column keys of an index are spread over.
const partitions = 256

// disabled is what a node without dataframes answers, and what the tool's backups
// have as the data of one.
const disabled = "Dataframe is disabled"

type fileKind int

const (
	shardFile fileKind = iota + 1
	dataframeFile
	partitionFile
	fieldFile
	allocFile
)

// file is one file of the layout, the schema apart.
type file struct {
	kind  fileKind
	index string
	field string
	n     uint64 // shard, or partition
}

// path is where it is stored.
func (f file) path() string {
	switch f.kind {
	case shardFile:
		return fmt.Sprintf("indexes/%s/shards/%04d", f.index, f.n)
	case dataframeFile:
		return fmt.Sprintf("indexes/%s/dataframe/%04d", f.index, f.n)
	case partitionFile:
		return fmt.Sprintf("indexes/%s/translate/%04d", f.index, f.n)
	case fieldFile:
		return fmt.Sprintf("indexes/%s/fields/%s/translate", f.index, f.field)
	}
	return "idalloc"
}

// parseFile is the reverse of path; ok is false for what is in no backup.
func parseFile(path string) (f file, ok bool) {
	if path == "idalloc" {
		return file{kind: allocFile}, true
	}
	part := strings.Split(path, "/")
	switch {
	case len(part) == 5 && part[0] == "indexes" && part[2] == "fields" && part[4] == "translate":
		return file{kind: fieldFile, index: part[1], field: part[3]}, true
	case len(part) != 4 || part[0] != "indexes":
		return f, false
	}
	n, err := strconv.ParseUint(part[3], 10, 64)
	f = file{index: part[1], n: n}
	switch part[2] {
	case "shards":
		f.kind = shardFile
	case "dataframe":
		f.kind = dataframeFile
	case "translate":
		f.kind = partitionFile
	}
	return f, err == nil && f.kind != 0 && f.path() == path && (f.kind != partitionFile || n < partitions)
}

// schema is what a cluster has. What we do not know of it is kept as it came.
type schema struct {
	indexes []*indexInfo
}

type indexInfo struct {
	Name    string `json:"name"`
	Created int64  `json:"createdAt"`
	Options struct {
		Keys       bool `json:"keys"`
		PartitionN int  `json:"partitionN"`
	} `json:"options"`
	Fields []*fieldInfo `json:"fields"`
	Width  uint64       `json:"shardWidth"`
	raw    json.RawMessage
}

type fieldInfo struct {
	Name    string `json:"name"`
	Created int64  `json:"createdAt"`
	Options struct {
		Keys    bool   `json:"keys"`
		Type    string `json:"type"`
		Foreign string `json:"foreignIndex"`
	} `json:"options"`
}

// named are the names that FeatureBase gives, which are parts of paths here.
var named = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9Θ_-]{0,229}$`)

func parseSchema(p []byte) (*schema, error) {
	var raw struct {
		Indexes []json.RawMessage `json:"indexes"`
	}
	if err := json.Unmarshal(p, &raw); err != nil {
		return nil, fmt.Errorf("the schema: %w", err)
	}
	s := &schema{}
	have := map[string]bool{}
	for _, r := range raw.Indexes {
		i := &indexInfo{raw: r}
		if err := json.Unmarshal(r, i); err != nil {
			return nil, fmt.Errorf("the schema: %w", err)
		}
		if !named.MatchString(i.Name) || have[i.Name] {
			return nil, fmt.Errorf("the schema: no name for an index: %q", i.Name)
		}
		have[i.Name] = true
		fields := map[string]bool{}
		for _, f := range i.Fields {
			if !named.MatchString(f.Name) || fields[f.Name] {
				return nil, fmt.Errorf("the schema: index %s: no name for a field: %q", i.Name, f.Name)
			}
			fields[f.Name] = true
		}
		if i.Options.PartitionN > partitions {
			return nil, fmt.Errorf("index %s has its keys in %d partitions, and %d is what is known: %w", i.Name, i.Options.PartitionN, partitions, system.ErrRefused)
		}
		s.indexes = append(s.indexes, i)
	}
	return s, nil
}

func (s *schema) index(name string) *indexInfo {
	for _, i := range s.indexes {
		if i.Name == name {
			return i
		}
	}
	return nil
}

func (i *indexInfo) field(name string) *fieldInfo {
	for _, f := range i.Fields {
		if f.Name == name {
			return f
		}
	}
	return nil
}

// keyed reports whether anything of the index has keys.
func (i *indexInfo) keyed() bool {
	for _, f := range i.Fields {
		if f.Options.Keys {
			return true
		}
	}
	return i.Options.Keys
}

// only returns the schema of one index.
func (s *schema) only(name string) (*schema, error) {
	i := s.index(name)
	if i == nil {
		return nil, fmt.Errorf("there is no index %q: %w", name, system.ErrRefused)
	}
	return &schema{indexes: []*indexInfo{i}}, nil
}

// text is the schema as a file.
func (s *schema) text() ([]byte, error) {
	list := []json.RawMessage{}
	for _, i := range s.indexes {
		list = append(list, i.raw)
	}
	p, err := json.Marshal(map[string]any{"indexes": list})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, p, "", "\t"); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
