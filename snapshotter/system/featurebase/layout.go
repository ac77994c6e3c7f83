package featurebase

import (
	"fmt"
	"strconv"
	"strings"
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

// layoutDeep is how many directories deep its files lie.
const layoutDeep = 4

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
