package consul

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// The header of records.bin has a field more than that of a state: the version of what
// is said here.
const (
	reducedField   = "Reduced"
	reducedVersion = 1
)

// part adds the files of a snapshot that is light or dataless: records.bin, which is a
// state whose records have extension 67 of MessagePack where something was left out.
// It has another name so that nobody takes it for what Consul reads.
func (c *capture) part(opt system.CaptureOptions, mtime tree.Time) error {
	t := c.taken
	f, err := scratchFile(opt.Scratch, recordsFile)
	if err != nil {
		return err
	}
	c.reduced = f
	out := bufio.NewWriterSize(f, 256<<10)
	reduce := dataless
	kept := make([]int, len(opt.Data))
	if opt.Mode == system.Light {
		reduce = light(opt.Data, kept)
	}
	in, err := newWalker(io.NewSectionReader(t.state, 0, t.meta.Size))
	if err != nil {
		return err
	}
	head, err := appendValue(nil, map[string]any{"LastIndex": in.lastIndex(), reducedField: uint64(reducedVersion)})
	if err != nil {
		return err
	}
	if _, err := out.Write(head); err != nil {
		return err
	}
	if err := reduceAll(in, out, reduce); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	for i, n := range kept {
		if n == 0 {
			opt.Warnf("no key begins with %q: no value is kept for it; keys are told as Consul has them, without kv/ or a slash in front", opt.Data[i])
		}
	}
	// What is left has other lengths, and so other cuts.
	st, err := f.Stat()
	if err != nil {
		return err
	}
	sum, err := scan(io.NewSectionReader(f, 0, st.Size()), nil)
	if err != nil {
		return fmt.Errorf("reading again what is to be kept: %w", err)
	}
	c.root.Add(system.NewFile(recordsFile, mtime, f, st.Size(), sum.cuts))
	return nil
}

func reduceAll(in *walker, out *bufio.Writer, reduce func([]byte, *record) ([]byte, error)) error {
	var buf []byte
	for {
		rec, err := in.next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			buf, err = reduce(append(buf[:0], rec.kind), rec)
		}
		if err != nil {
			return err
		}
		if _, err := out.Write(buf); err != nil {
			return err
		}
	}
}

// light leaves out the values of keys that begin with none of the prefixes. It counts
// those that begin with each.
func light(prefixes []string, kept []int) func([]byte, *record) ([]byte, error) {
	return func(b []byte, rec *record) ([]byte, error) {
		if rec.kind != kindKVS {
			return append(b, rec.body...), nil
		}
		p, err := parsePair(rec.body)
		if err != nil {
			return nil, err
		}
		chosen := false
		for i, x := range prefixes {
			if strings.HasPrefix(p.key, x) {
				chosen = true
				kept[i]++
			}
		}
		if chosen {
			return append(b, rec.body...), nil
		}
		return withoutValue(b, rec.body, nil)
	}
}

// withoutValue appends a key's record with its value left out, and of all other fields
// those of a list; nil: all.
func withoutValue(b, body []byte, fields map[string]bool) ([]byte, error) {
	p, err := parsePair(body)
	if err != nil {
		return nil, err
	}
	n, rest, err := msgp.ReadMapHeaderBytes(body)
	if err != nil {
		return nil, damaged("a key's record: %v", err)
	}
	kept := uint32(1)
	var out []byte
	for range n {
		at := rest
		var name []byte
		if name, rest, err = msgp.ReadMapKeyZC(rest); err == nil {
			rest, err = msgp.Skip(rest)
		}
		if err != nil {
			return nil, damaged("a key's record: %v", err)
		}
		if string(name) != "Value" && (fields == nil || fields[string(name)]) {
			out = append(out, at[:len(at)-len(rest)]...)
			kept++
		}
	}
	b = append(msgp.AppendMapHeader(b, kept), out...)
	return appendLeftOut(msgp.AppendString(b, "Value"), p.size), nil
}

// dataless keeps what an allow list has, and leaves out all else: what a later release
// puts into its records too.
func dataless(b []byte, rec *record) ([]byte, error) {
	if rec.kind == kindKVS || rec.kind == kindTombstone {
		return withoutValue(b, rec.body, keyFields)
	}
	v := open(rec.kind, rec.body)
	if v == nil || !shown[rec.kind] {
		return appendLeftOut(b, int64(len(rec.body))), nil
	}
	return appendValue(b, strip("", v))
}

// shown are the kinds whose records a dataless snapshot has, without what is not in
// shownFields.
var shown = map[uint8]bool{
	kindRegister: true, kindSession: true, kindCoordinate: true, kindQuery: true, kindAutopilot: true, kindIntention: true,
	kindCA: true, kindCAConfig: true, kindIndex: true, kindToken: true, kindPolicy: true, kindConfig: true, kindRole: true,
	kindBindingRule: true, kindAuthMethod: true, kindFederation: true, kindVirtualIP: true, kindFreeIP: true,
}

// shownFields are the fields whose texts a dataless snapshot has. Numbers and truth
// values are kept everywhere, and what maps have for keys.
var shownFields = names(`ID Name Node Datacenter Address Service ServiceID ServiceName Kind CheckID Status Key Session Behavior TTL
	AccessorID Policies Roles Datacenters AuthMethod Type TokenLocality Local BindType BindName Rules Provider ClusterID Protocol Namespace
	Partition PeerName Peer Segment SourceName DestinationName SourceNS DestinationNS Action Mode Interval Timeout
	TrustDomain NotBefore NotAfter CreateTime ExpirationTime IP Region Zone Resolver DestinationServiceName LocalServiceName MeshGateway
	PrivateKeyType SigningKeyID version LAN WAN lan wan lan_ipv4 wan_ipv4`)

// keyFields are those of a key's record that a dataless snapshot has.
var keyFields = names("Key Flags LockIndex CreateIndex ModifyIndex Session Namespace Partition")

// opaque are the fields in which anything can be: no text below them is kept.
var opaque = names("Meta NodeMeta Config Header Opaque State Output Notes Body Definition Description Proxy Template")

func names(list string) map[string]bool {
	m := map[string]bool{}
	for _, n := range strings.Fields(list) {
		m[n] = true
	}
	return m
}

type absent int64

func gone(n int) absent { return absent(n) }

// strip replaces the texts that are not to be seen. field is that which has v.
func strip(field string, v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			switch {
			case isSecret(k) && !plainKind(e):
				x[k] = stripAll(e)
			case opaque[k]:
				x[k] = stripAll(e)
			default:
				x[k] = strip(k, e)
			}
		}
	case []any:
		for i := range x {
			x[i] = strip(field, x[i])
		}
	case string, []byte:
		if !shownFields[field] && text(v) != "" {
			return gone(len(text(v)))
		}
	case *msgp.RawExtension, time.Time:
		return gone(0)
	}
	return v
}

// plainKind reports that a value is a number, a truth value or nothing.
func plainKind(v any) bool {
	switch v.(type) {
	case nil, bool, int64, uint64, float32, float64:
		return true
	}
	return false
}

// stripAll leaves nothing of a value but its shape.
func stripAll(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			x[k] = stripAll(e)
		}
	case []any:
		for i := range x {
			x[i] = stripAll(x[i])
		}
	case nil, bool:
	case string, []byte:
		if n := len(text(v)); n > 0 {
			return gone(n)
		}
	default:
		return gone(0)
	}
	return v
}

var errKind = errors.New("a value of a type that is not kept")

// appendValue encodes a value with sorted keys.
func appendValue(b []byte, v any) ([]byte, error) {
	switch x := v.(type) {
	case absent:
		return appendLeftOut(b, int64(x)), nil
	case map[string]any:
		b = msgp.AppendMapHeader(b, uint32(len(x)))
		for _, k := range slices.Sorted(maps.Keys(x)) {
			b = msgp.AppendString(b, k)
			var err error
			if b, err = appendValue(b, x[k]); err != nil {
				return nil, err
			}
		}
		return b, nil
	case []any:
		b = msgp.AppendArrayHeader(b, uint32(len(x)))
		for _, e := range x {
			var err error
			if b, err = appendValue(b, e); err != nil {
				return nil, err
			}
		}
		return b, nil
	case string, []byte, nil, bool, int64, uint64, float32, float64:
		return msgp.AppendIntf(b, x)
	}
	return nil, fmt.Errorf("%T: %w", v, errKind)
}
