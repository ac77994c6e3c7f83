package consul

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
)

// unit is about how long the pieces are that a state is cut into, in bytes: records of
// this length or more are pieces of their own, shorter ones lie together. A piece costs
// about 40 bytes of a recipe, so they do not get shorter; and the longer they are, the
// more goes with each key that was rewritten.
const unit = 384

// tally counts records and their bytes.
type tally struct {
	name  string
	count int
	size  int64
}

// summary is what one pass through a state finds out.
type summary struct {
	cuts       []int64 // where pieces end
	kinds      map[uint8]*tally
	prefixes   map[string]*tally // of keys, as inspect -kvdetails cuts them
	keySize    int64
	total      int64
	lastIndex  uint64
	datacenter string // empty: the state does not say
	cluster    string // the ID of the cluster's certificate authority; may be empty
	versions   map[string]int
	services   map[string]bool // but for consul itself
	nodes      int
	agents     int // nodes that an agent stands for, which registers itself
	unknown    map[uint8]bool
	missing    int64 // bytes of values that were left out
}

// count is how many records of a kind there are.
func (s *summary) count(kind uint8) int {
	if t := s.kinds[kind]; t != nil {
		return t.count
	}
	return 0
}

// version is what most servers run; empty if they do not say.
func (s *summary) version() string {
	best := ""
	for v, n := range s.versions {
		if n > s.versions[best] || n == s.versions[best] && v > best {
			best = v
		}
	}
	return best
}

// identity tells the cluster from others: its datacenter and the ID that it was given
// when its first leader was elected.
func (s *summary) identity() string {
	if s.datacenter == "" || s.cluster == "" {
		return s.datacenter
	}
	return s.datacenter + "/" + s.cluster
}

// maxPrefixes bounds the prefixes of keys that are counted apart.
const maxPrefixes = 1 << 20

// scan goes through a state. each, if there is one, sees every record, and what it
// decodes to where that is no key.
func scan(r io.Reader, each func(rec *record, v any, p *pair) error) (*summary, error) {
	w, err := newWalker(r)
	if err != nil {
		return nil, err
	}
	s := &summary{kinds: map[uint8]*tally{}, prefixes: map[string]*tally{}, versions: map[string]int{"": 0}, services: map[string]bool{},
		unknown: map[uint8]bool{}, lastIndex: w.lastIndex()}
	for first := w.pos(); ; first = 0 {
		rec, err := w.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		// As Consul's inspect counts: the header goes with the first record.
		if err := s.record(rec, rec.len()+first, each); err != nil {
			return nil, fmt.Errorf("record of type %s at offset %d: %w", kindName(rec.kind), rec.off, err)
		}
	}
	if s.total == 0 {
		return nil, damaged("the state has no records")
	}
	if n := len(s.cuts); n == 0 || s.cuts[n-1] != s.total {
		s.cuts = append(s.cuts, s.total)
	}
	return s, nil
}

func (s *summary) record(rec *record, size int64, each func(*record, any, *pair) error) error {
	var v any
	var p *pair
	var name []byte // what this record is called, whatever it says
	if rec.kind == kindKVS {
		kv, err := parsePair(rec.body)
		if err != nil {
			return err
		}
		p, name = &kv, []byte(kv.key)
		s.key(p, size)
	} else {
		v = open(rec.kind, rec.body)
		parts := place(rec.kind, v, rec.body)
		name = []byte(strings.Join(parts, "\x00"))
		s.learn(rec.kind, v)
	}
	t := s.kinds[rec.kind]
	if t == nil {
		t = &tally{name: kindName(rec.kind)}
		s.kinds[rec.kind] = t
		if kindNames[rec.kind] == "" {
			s.unknown[rec.kind] = true
		}
	}
	t.count++
	t.size += size
	s.total = rec.off + rec.len()
	if cutAfter(name, rec.len()) {
		s.cuts = append(s.cuts, s.total)
	}
	if each != nil {
		return each(rec, v, p)
	}
	return nil
}

// cutAfter decides by a record's name and length whether a piece ends with it: what
// others say, or what it said before, moves no cut.
func cutAfter(name []byte, size int64) bool {
	if size >= unit {
		return true
	}
	h := fnv.New64a()
	h.Write(name)
	// The high bits of FNV depend on all of the name only after a multiplication more.
	return (h.Sum64()*0x9E3779B97F4A7C15)>>11 < uint64(float64(size)/unit*math.Exp2(53))
}

// key counts a key below its prefix of two parts.
func (s *summary) key(p *pair, size int64) {
	if p.absent {
		s.missing += p.size
	}
	prefix := p.key
	if i := strings.Index(prefix, "/"); i >= 0 {
		if j := strings.Index(prefix[i+1:], "/"); j >= 0 {
			prefix = prefix[:i+1+j]
		}
	}
	s.keySize += size
	t := s.prefixes[prefix]
	if t == nil {
		if len(s.prefixes) >= maxPrefixes {
			return
		}
		t = &tally{name: strings.Clone(prefix)}
		s.prefixes[t.name] = t
	}
	t.count++
	t.size += size
}

// learn takes from a record what it says of the cluster.
func (s *summary) learn(kind uint8, v any) {
	switch kind {
	case kindCAConfig:
		s.cluster = digText(v, "ClusterID")
	case kindRegister:
		if digText(v, "PeerName") != "" {
			return
		}
		name := digText(v, "Service", "Service")
		switch {
		case name == "consul":
			if dc := digText(v, "Datacenter"); dc != "" {
				s.datacenter = dc
			}
			version := first(dig(v, "Service", "Meta"), "version")
			if version == "" {
				version = digText(v, "NodeMeta", "consul-version")
			}
			if version != "" {
				s.versions[version]++
			}
		case name != "":
			s.services[name] = true
		case dig(v, "Check") == nil:
			s.nodes++
		case digText(v, "Check", "CheckID") == "serfHealth":
			s.agents++
		}
	}
}

// inspect is what "consul snapshot inspect -kvdetails" prints.
func (s *summary) inspect(m meta) []byte {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 8, 8, 6, ' ', 0)
	fmt.Fprintf(w, " ID\t%s\n Size\t%d\n Index\t%d\n Term\t%d\n Version\t%d\n\n", m.ID, m.Size, m.Index, m.Term, m.Version)
	table := func(title string, list []*tally, total int64) {
		fmt.Fprintf(w, " %s\tCount\tSize\n ----\t----\t----\n", title)
		sort.Slice(list, func(i, j int) bool {
			if list[i].size != list[j].size {
				return list[i].size > list[j].size
			}
			return list[i].name < list[j].name
		})
		for _, t := range list {
			fmt.Fprintf(w, " %s\t%d\t%s\n", printable(t.name), t.count, short(t.size))
		}
		fmt.Fprintf(w, " ----\t----\t----\n Total\t\t%s\n", short(total))
	}
	var kinds, keys []*tally
	for _, t := range s.kinds {
		kinds = append(kinds, t)
	}
	table("Type", kinds, s.total)
	for _, t := range s.prefixes {
		keys = append(keys, t)
	}
	if len(keys) > 0 {
		fmt.Fprintln(w)
		table("Key Name", keys, s.keySize)
	}
	w.Flush() // into memory
	return b.Bytes()
}

// printable is a name that does not break a table.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// short is a size as Consul prints it.
func short(n int64) string {
	if n == 0 {
		return "0"
	}
	unit, v := "B", float64(n)
	for _, u := range []string{"KB", "MB", "GB", "TB"} {
		if v < 1024 {
			break
		}
		unit, v = u, v/1024
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + unit
}

// counts are the numbers that a record of a snapshot keeps.
func (s *summary) counts() map[string]string {
	m := map[string]string{"keys": strconv.Itoa(s.count(kindKVS)), "nodes": strconv.Itoa(s.nodes), "services": strconv.Itoa(len(s.services)),
		"sessions": strconv.Itoa(s.count(kindSession)), "tokens": strconv.Itoa(s.count(kindToken)), "config-entries": strconv.Itoa(s.count(kindConfig))}
	return m
}

// unknownKinds are the types of records that this program has no name for.
func (s *summary) unknownKinds() []int {
	var list []int
	for k := range s.unknown {
		list = append(list, int(k))
	}
	slices.Sort(list)
	return list
}
