package featurebase

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// schema is what a cluster has. What we do not know of it is kept as it came. An index
// stands behind those that its fields have keys of, as far as that is possible: the
// system's own tool makes them in that order, and fails where the other is missing.
type schema struct {
	indexes []*indexInfo
	byName  map[string]*indexInfo
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
		Keys    bool            `json:"keys"`
		Type    string          `json:"type"`
		Foreign string          `json:"foreignIndex"`
		Min     json.RawMessage `json:"min"`
		Max     json.RawMessage `json:"max"`
		Base    *int64          `json:"base"`
		Epoch   *time.Time      `json:"epoch"`
		Unit    string          `json:"timeUnit"`
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
	// So a node answers, with a code of success, that could not read it: [] is none.
	if raw.Indexes == nil {
		return nil, fmt.Errorf("the schema has no list of indexes: that is what a node says that has lost touch with its cluster, or to a token that may read none: %w", system.ErrIncomplete)
	}
	s := &schema{byName: map[string]*indexInfo{}}
	for _, r := range raw.Indexes {
		i := &indexInfo{raw: r}
		if err := json.Unmarshal(r, i); err != nil {
			return nil, fmt.Errorf("the schema: %w", err)
		}
		if !named.MatchString(i.Name) || s.byName[i.Name] != nil {
			return nil, fmt.Errorf("the schema: no name for an index: %q", i.Name)
		}
		s.byName[i.Name] = i
		fields := map[string]bool{}
		for _, f := range i.Fields {
			if f == nil {
				return nil, fmt.Errorf("the schema: index %s: a field that is null", i.Name)
			}
			if !named.MatchString(f.Name) || fields[f.Name] {
				return nil, fmt.Errorf("the schema: index %s: no name for a field: %q", i.Name, f.Name)
			}
			fields[f.Name] = true
		}
		if i.Options.PartitionN > partitions {
			return nil, fmt.Errorf("index %s has its keys in %d partitions, and %d is what is known: %w", i.Name, i.Options.PartitionN, partitions, system.ErrRefused)
		}
		if err := i.complete(); err != nil {
			return nil, fmt.Errorf("the schema: index %s: %w", i.Name, err)
		}
		s.indexes = append(s.indexes, i)
	}
	s.order()
	return s, nil
}

// order puts each index behind those that its fields have keys of.
func (s *schema) order() {
	var list []*indexInfo
	seen := map[*indexInfo]bool{}
	var add func(i *indexInfo)
	add = func(i *indexInfo) {
		if i == nil || seen[i] {
			return
		}
		seen[i] = true
		for _, f := range i.Fields {
			add(s.index(f.Options.Foreign))
		}
		list = append(list, i)
	}
	for _, i := range s.indexes {
		add(i)
	}
	s.indexes = list
}

func (s *schema) index(name string) *indexInfo { return s.byName[name] }

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
	return s.without(func(i *indexInfo) bool { return i.Name != name }), nil
}

// without returns the schema of the others.
func (s *schema) without(drop func(*indexInfo) bool) *schema {
	kept := &schema{byName: map[string]*indexInfo{}}
	for _, i := range s.indexes {
		if !drop(i) {
			kept.indexes = append(kept.indexes, i)
			kept.byName[i.Name] = i
		}
	}
	return kept
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

// rewrite changes, or drops, fields of what is kept of an index. It does not change Fields.
func (i *indexInfo) rewrite(change func(f *fieldInfo, options map[string]json.RawMessage) (keep bool)) error {
	var all map[string]json.RawMessage
	var raw []map[string]json.RawMessage
	err := json.Unmarshal(i.raw, &all)
	if err == nil && all["fields"] != nil {
		err = json.Unmarshal(all["fields"], &raw)
	}
	if err != nil {
		return err
	}
	kept := []map[string]json.RawMessage{}
	for n, r := range raw {
		options := map[string]json.RawMessage{}
		if r["options"] != nil {
			if err := json.Unmarshal(r["options"], &options); err != nil {
				return err
			}
		}
		if !change(i.Fields[n], options) {
			continue
		}
		if r["options"], err = json.Marshal(options); err != nil {
			return err
		}
		kept = append(kept, r)
	}
	if all["fields"], err = json.Marshal(kept); err == nil {
		i.raw, err = json.Marshal(all)
	}
	return err
}
