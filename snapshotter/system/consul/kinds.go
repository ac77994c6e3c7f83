package consul

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Types of records, as Consul's servers number them.
const (
	kindRegister    = 0
	kindKVS         = 2
	kindSession     = 3
	kindTombstone   = 5
	kindCoordinate  = 6
	kindQuery       = 7
	kindAutopilot   = 9
	kindIntention   = 12
	kindCA          = 13
	kindCAState     = 14
	kindCAConfig    = 15
	kindIndex       = 16
	kindToken       = 17
	kindPolicy      = 19
	kindConfig      = 22
	kindRole        = 23
	kindBindingRule = 25
	kindAuthMethod  = 27
	kindChunking    = 29
	kindFederation  = 30
	kindMetadata    = 31
	kindVirtualIP   = 32
	kindFreeIP      = 33
	kindPeering     = 35
	kindTrustBundle = 38
	kindPeerSecrets = 40
	kindResource    = 42
)

// kindNames are those that "consul snapshot inspect" prints.
var kindNames = map[uint8]string{
	kindRegister: "Register", 1: "Deregister", kindKVS: "KVS", kindSession: "Session", 4: "ACL", kindTombstone: "Tombstone",
	kindCoordinate: "CoordinateBatchUpdate", kindQuery: "PreparedQuery", 8: "Txn", kindAutopilot: "Autopilot", 10: "Area",
	11: "ACLBootstrap", kindIntention: "Intention", kindCA: "ConnectCA", kindCAState: "ConnectCAProviderState",
	kindCAConfig: "ConnectCAConfig", kindIndex: "Index", kindToken: "ACLToken", 18: "ACLTokenDelete", kindPolicy: "ACLPolicy",
	20: "ACLPolicyDelete", 21: "ConnectCALeaf", kindConfig: "ConfigEntry", kindRole: "ACLRole", 24: "ACLRoleDelete",
	kindBindingRule: "ACLBindingRule", 26: "ACLBindingRuleDelete", kindAuthMethod: "ACLAuthMethod", 28: "ACLAuthMethodDelete",
	kindChunking: "ChunkingState", kindFederation: "FederationState", kindMetadata: "SystemMetadata",
	kindVirtualIP: "ServiceVirtualIP", kindFreeIP: "FreeVirtualIP", 34: "KindServiceName", kindPeering: "Peering",
	36: "PeeringDelete", 37: "PeeringTerminateByID", kindTrustBundle: "PeeringTrustBundle", 39: "PeeringTrustBundleDelete",
	kindPeerSecrets: "PeeringSecret", 41: "RaftLogVerifierCheckpoint", kindResource: "Resource", 43: "UpdateManualVirtualIPRequestType",
}

// kindName is a type's name; types that nobody told us of have their number.
func kindName(k uint8) string {
	if n := kindNames[k]; n != "" {
		return n
	}
	return "Unknown(" + strconv.Itoa(int(k)) + ")"
}

// open decodes a record's value. Config entries are encoded twice: a string of bytes
// with the kind, and then the entry. What cannot be decoded, as protocol buffers are
// not, gives nil.
func open(kind uint8, body []byte) any {
	v := decode(body)
	if kind == kindConfig {
		if m, ok := unwrapEntry(v).(map[string]any); ok {
			return m
		}
	}
	if _, ok := v.(map[string]any); ok {
		return v
	}
	if _, ok := v.([]any); ok {
		return v
	}
	return nil
}

// unwrapEntry takes the outer encoding off a config entry.
func unwrapEntry(v any) any {
	raw := []byte(text(v))
	if len(raw) == 0 {
		return v
	}
	parts := values(raw, 2)
	if len(parts) == 0 {
		return nil
	}
	m, ok := parts[len(parts)-1].(map[string]any)
	if !ok {
		return nil
	}
	// Some kinds encode the entry itself a third time.
	if inner := values([]byte(text(m["Entry"])), 1); len(inner) == 1 {
		m["Entry"] = inner[0]
	}
	return m
}

// dig returns the value at a path of fields.
func dig(v any, path ...string) any {
	for _, name := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

func digText(v any, path ...string) string { return text(dig(v, path...)) }

// place is where the view has a record that is no key: parts of a path, of any bytes.
// Two records may have the same.
func place(kind uint8, v any, body []byte) []string {
	parts := placeIn(kind, v)
	if parts == nil {
		sum := sha256.Sum256(body)
		parts = []string{"other", kindName(kind), hex.EncodeToString(sum[:8])}
	}
	if peer := digText(v, "PeerName"); peer != "" && kind == kindRegister {
		parts = append([]string{"peers", peer}, parts...)
	}
	// Enterprise has namespaces and partitions.
	if ns := digText(v, "Namespace"); ns != "" && ns != "default" {
		parts = append([]string{"namespaces", ns}, parts...)
	}
	if p := digText(v, "Partition"); p != "" && p != "default" {
		parts = append([]string{"partitions", p}, parts...)
	}
	return parts
}

// hidden tells which records are secrets as a whole. Of what cannot be decoded nobody
// knows what it has, but for some types.
func hidden(kind uint8, v any) bool {
	switch kind {
	case kindPeerSecrets, kindChunking: // writes that are not whole yet are any bytes
		return true
	case kindPeering, kindTrustBundle, kindResource:
		return false
	}
	return v == nil
}

// first is the first of the fields that has a text.
func first(v any, names ...string) string {
	for _, n := range names {
		if s := digText(v, n); s != "" {
			return s
		}
	}
	return ""
}

// placeIn is place for the kinds that are known.
func placeIn(kind uint8, v any) []string {
	named := func(dir string, names ...string) []string {
		if n := first(v, names...); n != "" {
			return append(strings.Split(dir, "/"), n)
		}
		return nil
	}
	switch kind {
	case kindRegister:
		return placeRegister(v)
	case kindCoordinate:
		if list, ok := v.([]any); ok && len(list) == 1 {
			if node := digText(list[0], "Node"); node != "" {
				return []string{"nodes", node, "coordinate" + dashed(digText(list[0], "Segment"))}
			}
		}
		return nil
	case kindSession:
		return named("sessions", "ID")
	case kindQuery:
		return named("queries", "Name", "ID")
	case kindConfig:
		if kind, name := digText(v, "Entry", "Kind"), digText(v, "Entry", "Name"); kind != "" && name != "" {
			return []string{"config", kind, name}
		}
		if kind := digText(v, "Entry", "Kind"); kind != "" {
			return []string{"config", kind, kind} // of which there is one, as "mesh"
		}
		return nil
	case kindToken:
		return named("acl/tokens", "AccessorID")
	case kindPolicy:
		return named("acl/policies", "Name", "ID")
	case kindRole:
		return named("acl/roles", "Name", "ID")
	case kindBindingRule:
		return named("acl/binding-rules", "ID")
	case kindAuthMethod:
		return named("acl/auth-methods", "Name")
	case kindAutopilot, kindCAConfig, kindChunking:
		return []string{"other", kindName(kind), kindName(kind)}
	case kindVirtualIP:
		if n := digText(v, "Service", "ServiceName", "Name"); n != "" {
			return []string{"other", kindName(kind), n + dashed(digText(v, "Service", "Peer"))}
		}
		return nil
	case kindFederation:
		if dc := digText(v, "State", "Datacenter"); dc != "" {
			return []string{"other", kindName(kind), dc}
		}
		return nil
	}
	return named("other/"+kindName(kind), "ID", "Key", "Name")
}

func dashed(s string) string {
	if s == "" {
		return ""
	}
	return "-" + s
}

// placeRegister tells nodes, services and checks apart.
func placeRegister(v any) []string {
	node := digText(v, "Node")
	if node == "" {
		return nil
	}
	if s, ok := dig(v, "Service").(map[string]any); ok {
		name := text(s["Service"])
		if name == "" {
			return nil
		}
		id := text(s["ID"])
		if id == "" {
			id = name
		}
		return []string{"services", name, node, id}
	}
	if c, ok := dig(v, "Check").(map[string]any); ok {
		if id := text(c["CheckID"]); id != "" {
			return []string{"nodes", node, "checks", id}
		}
		return nil
	}
	return []string{"nodes", node, "node"}
}

// isSecret tells by a field's name whether its value opens doors.
func isSecret(field string) bool {
	f := strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(field))
	if strings.HasPrefix(f, "privatekey") && (strings.HasSuffix(f, "type") || strings.HasSuffix(f, "bits")) {
		return false
	}
	for _, part := range []string{"secret", "privatekey", "signingkey", "apikey", "accesskey", "password", "passphrase", "passwd", "credential", "authorization"} {
		if strings.Contains(f, part) {
			return true
		}
	}
	return f == "cookie" || f == "setcookie" || strings.HasSuffix(f, "token") || strings.HasSuffix(f, "accountjwt")
}

// masked replaces secrets.
const masked = "(masked)"

// mask replaces the secrets in a decoded value, at any depth.
func mask(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			if isSecret(k) && hasContent(e) {
				x[k] = masked
			} else {
				x[k] = mask(e)
			}
		}
	case []any:
		for i := range x {
			x[i] = mask(x[i])
		}
	case string:
		return maskURL(x)
	case []byte:
		return maskURL(string(x))
	}
	return v
}

// maskURL replaces the password in a text that begins as a URL with one.
func maskURL(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || strings.ContainsAny(scheme, "/ ") {
		return s
	}
	host, _, _ := strings.Cut(rest, "/")
	at := strings.LastIndexByte(host, '@')
	colon := strings.IndexByte(host, ':')
	if colon < 0 || at < colon {
		return s
	}
	return scheme + "://" + rest[:colon+1] + masked + rest[at:]
}

// hasContent reports whether a value could give something away.
func hasContent(v any) bool {
	switch x := v.(type) {
	case map[string]any:
		return len(x) > 0
	case []any:
		return len(x) > 0
	}
	return text(v) != ""
}

// render is a decoded value as JSON with sorted keys: records that differ by the order
// of their maps alone are equal.
func render(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(plain("", v)); err != nil {
		return fmt.Appendf(nil, "%q\n", err.Error()) // a number that JSON has not
	}
	return b.Bytes()
}

// plain makes of a decoded value what JSON can have.
func plain(field string, v any) any {
	switch x := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(x))
		for k, e := range x {
			m[valid(k)] = plain(k, e)
		}
		return m
	case []any:
		l := make([]any, len(x))
		for i, e := range x {
			l[i] = plain("", e)
		}
		return l
	case string, []byte:
		return plainText(field, text(v))
	case nil, bool, int64, uint64, float32, float64, time.Time:
		return x
	}
	if n, ok := isLeftOut(v); ok {
		return fmt.Sprintf("(left out: %d bytes)", n)
	}
	return fmt.Sprintf("(%T)", v)
}

func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return fmt.Sprintf("%q", s)
}

// plainText is a string as people read it: Go's times and addresses are kept as
// bytes, and other bytes that are no text become base64.
func plainText(field, s string) any {
	if (len(s) == 15 || len(s) == 16) && (s[0] == 1 || s[0] == 2) {
		var t time.Time
		if t.UnmarshalBinary([]byte(s)) == nil && t.Year() >= 0 && t.Year() < 10000 {
			return t
		}
	}
	if (field == "IP" || field == "ManualIPs") && (len(s) == 4 || len(s) == 16) {
		return net.IP(s).String()
	}
	if utf8.ValidString(s) {
		return s
	}
	return map[string]string{"base64": base64.StdEncoding.EncodeToString([]byte(s))}
}
