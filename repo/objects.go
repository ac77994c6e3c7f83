package repo

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// ID names a snapshot, an intent or a key: 16 random bytes, used once.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText writes hexadecimal digits.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *ID) UnmarshalText(p []byte) error {
	if len(p) != 2*len(id) { // hex.Decode would write behind the end
		return fmt.Errorf("%q is no ID: %w", p, chunk.ErrCorrupt)
	}
	if _, err := hex.Decode(id[:], p); err != nil {
		return fmt.Errorf("%q is no ID: %w", p, chunk.ErrCorrupt)
	}
	return nil
}

// ParseID reads an ID from a name's last part.
func ParseID(s string) (ID, bool) {
	var id ID
	return id, len(s) == 32 && id.UnmarshalText([]byte(s)) == nil
}

// Path is a path of any bytes. In JSON it is a string, or, where it is not
// UTF-8, {"b64": "..."}.
type Path string

// MarshalJSON writes the path without loss.
func (p Path) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(p)) {
		return json.Marshal(string(p))
	}
	return json.Marshal(map[string]string{"b64": base64.StdEncoding.EncodeToString([]byte(p))})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (p *Path) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err == nil {
		*p = Path(s)
		return nil
	}
	var m struct{ B64 []byte }
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*p = Path(m.B64)
	return nil
}

// Snapshot is a snapshot's record, the body of snapshots/<id>. It is written
// last and never changed; later words about it are marks.
type Snapshot struct {
	V       int       `json:"v"`
	ID      ID        `json:"id"`
	Name    string    `json:"name"`
	Label   string    `json:"label,omitempty"`
	Note    string    `json:"note,omitempty"`
	Tags    []string  `json:"tags,omitempty"`
	Time    time.Time `json:"time"` // when it began; what the files were read after
	End     time.Time `json:"end"`
	Host    string    `json:"host,omitempty"`
	Program string    `json:"program,omitempty"`
	Paths   []Path    `json:"paths"`
	Exclude []string  `json:"exclude,omitempty"`
	Parent  *ID       `json:"parent,omitempty"` // whose witness it leaned on

	Tree    PageID      `json:"tree"`              // page of one entry, named "root"
	Witness PageID      `json:"witness,omitempty"` // page of one item, named "root"
	Totals  tree.Totals `json:"totals"`            // without the root
	Stats   Stats       `json:"stats"`

	// Unread is how many paths could not be read; such a snapshot is partial.
	// The first of them are named.
	Unread  uint64   `json:"unread,omitempty"`
	Problem []string `json:"problems,omitempty"`
	Changed uint64   `json:"changed,omitempty"` // files that changed while they were read

	Mode    string          `json:"mode,omitempty"`    // full (or empty), light, dataless
	Data    []string        `json:"data,omitempty"`    // of which a light one has the contents
	System  json.RawMessage `json:"system,omitempty"`  // what a running system said of itself
	Members []Member        `json:"members,omitempty"` // of a cluster snapshot

	// Of a copy: the stored record of the original, as its repository has it,
	// and which that is. A copy of a copy names the first original. Seen is when
	// its repository's storage saw the original, if another than that repository's
	// owner wrote it, who may lie about its time.
	Copied []byte    `json:"copied,omitempty"`
	Origin *Origin   `json:"origin,omitempty"`
	Seen   time.Time `json:"seen,omitzero"`

	// Repairs is the damaged snapshot that this one stands in for, and Lost
	// what of it could not be brought back.
	Repairs *ID   `json:"repairs,omitempty"`
	Lost    *Lost `json:"lost,omitempty"`

	Extra map[string]json.RawMessage `json:"-"`

	// What follows is not in the record.
	Dir     string    `json:"-"` // TIME as the mount shows it, unique for the name
	ModTime time.Time `json:"-"` // by the backend's clock
	Writer  string    `json:"-"`
	author  string    // of a copy: who wrote the original, as its envelope says
	sum     [32]byte  // BLAKE3 of the stored form
	Pinned  bool      `json:"-"`
	Expires time.Time `json:"-"`
	MarkErr error     `json:"-"` // a mark that cannot be read: what was said of it may not seem so
}

// Stats is what making a snapshot cost.
type Stats struct {
	ReadBytes uint64 `json:"read_bytes"` // from files, not counting unchanged ones
	NewBytes  uint64 `json:"new_bytes"`  // plain bytes of new chunks and pages
	Stored    uint64 `json:"stored"`     // bytes that they took in packs
	New       uint64 `json:"new_files"`
	Modified  uint64 `json:"modified_files"`
	Unchanged uint64 `json:"unchanged_files"`
}

// Origin names a snapshot among those of all repositories.
type Origin struct {
	Repo ID `json:"repo"`
	ID   ID `json:"id"`
}

// Lost is what a repaired snapshot lacks of the one that it repairs. Each is
// marked where it was, too: extents are lost ones, and entries of directories
// say so.
type Lost struct {
	Files  uint64   `json:"files,omitempty"`  // of which something is lost
	Bytes  uint64   `json:"bytes,omitempty"`  // in those files
	Dirs   uint64   `json:"dirs,omitempty"`   // of which names are lost
	Names  uint64   `json:"names,omitempty"`  // lost in those, with all that is below them
	Xattrs uint64   `json:"xattrs,omitempty"` // nodes whose extended attributes are lost
	Paths  []string `json:"paths,omitempty"`  // the first of them, quoted, and what was lost
}

// Member is one node of a cluster snapshot: a directory in the tree's root.
type Member struct {
	Name    string    `json:"name"`
	State   string    `json:"state"` // complete, partial, failed, absent
	Start   time.Time `json:"start"`
	End     time.Time `json:"end"`
	Version string    `json:"version,omitempty"`
	Tree    PageID    `json:"tree,omitempty"`
	Writer  string    `json:"writer,omitempty"`
	// Signature is the writer's over "cutbank member", 0, the repository's
	// ID, 0, the snapshot's ID, 0, and the BLAKE3 hash of this member's JSON
	// form without the signature.
	Signature []byte          `json:"signature,omitempty"`
	System    json.RawMessage `json:"system,omitempty"`
}

// PageID is a page's ID, in JSON as hexadecimal digits, empty for none.
type PageID struct{ chunk.ID }

// MarshalText writes hexadecimal digits.
func (p PageID) MarshalText() ([]byte, error) {
	if p.IsZero() {
		return nil, nil
	}
	return []byte(p.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (p *PageID) UnmarshalText(b []byte) (err error) {
	if p.ID = (chunk.ID{}); len(b) > 0 {
		p.ID, err = chunk.ParseID(string(b))
	}
	return err
}

// Intent is the body of intents/<id>: a writer at work on snapshots/<id>.
// Heartbeats are objects intents/<id>.<n> with the same body. Host, program and
// process tell a person who it is.
type Intent struct {
	V       int       `json:"v"`
	ID      ID        `json:"id"`
	Started time.Time `json:"started"`
	Beat    int       `json:"beat,omitempty"`
	Host    string    `json:"host,omitempty"`
	Program string    `json:"program,omitempty"`
	PID     int       `json:"pid,omitempty"`
}

// Tombstone is the body of an object that takes the place of a record whose
// writer was declared dead.
type Tombstone struct {
	V    int       `json:"v"`
	ID   ID        `json:"id"`
	Time time.Time `json:"time"`
	Why  string    `json:"why,omitempty"`
}

// Mark is the body of marks/<id>-<n>: a later word about snapshot id. Marks are
// applied in the order of n.
type Mark struct {
	V    int       `json:"v"`
	ID   ID        `json:"id"`
	Time time.Time `json:"time"`
	// Op is tag, untag, pin, unpin or expire; readers ignore others.
	Op    string    `json:"op"`
	Value string    `json:"value,omitempty"` // the tag
	Until time.Time `json:"until,omitzero"`  // of expire; without it never
}

// Forgotten is the body of forgotten/<id>: a snapshot that is gone for
// readers although its writer may still be waiting for an answer.
type Forgotten struct {
	V    int       `json:"v"`
	ID   ID        `json:"id"`
	Time time.Time `json:"time"`
}

// Condemned is the body of condemned/<id>: packs that a prune will remove.
// Objects condemned/<id>.<n> with the same kind and no packs hold what became
// known after it was put: the intents to wait for.
type Condemned struct {
	V     int       `json:"v"`
	ID    ID        `json:"id"`
	Time  time.Time `json:"time"`
	Packs []string  `json:"packs,omitempty"`
	Wait  []ID      `json:"wait,omitempty"`
}

// Writer is the body of writers/<id>-<n>, signed by the owner: who else may
// write. The ID is that of the public key, the highest n counts. Of the records
// that a revoked writer signed those count that Accepted names, each with the
// BLAKE3 hash of its stored form: what was there when it was revoked.
type Writer struct {
	V       int       `json:"v"`
	Public  []byte    `json:"public"` // Ed25519
	Names   []string  `json:"names"`  // globs of the snapshot names it may use
	Rights  []string  `json:"rights,omitempty"`
	Expires time.Time `json:"expires,omitzero"` // records of later times do not count
	Revoked time.Time `json:"revoked,omitzero"`
	Note    string    `json:"note,omitempty"`

	Accepted map[ID][]byte `json:"accepted,omitempty"`
}

// Ledger is the body of ledger/<id>: which packs were verified.
type Ledger struct {
	V       int           `json:"v"`
	Time    time.Time     `json:"time"`
	Entries []LedgerEntry `json:"entries"`
}

// LedgerEntry tells of one pack.
type LedgerEntry struct {
	Pack  string    `json:"pack"`
	Time  time.Time `json:"time"`
	Depth string    `json:"depth"` // hash, frames, chunks
	OK    bool      `json:"ok"`
	What  string    `json:"what,omitempty"`
	// Healed tells of a damaged pack that all it held has another place.
	Healed bool `json:"healed,omitempty"`
}

// MarshalJSON writes the known fields and those of newer versions.
func (s *Snapshot) MarshalJSON() ([]byte, error) {
	type plain Snapshot
	return seal.MergeJSON((*plain)(s), s.Extra)
}

// UnmarshalJSON reads a record and keeps what it does not know.
func (s *Snapshot) UnmarshalJSON(p []byte) error {
	type plain Snapshot
	return seal.SplitJSON(p, (*plain)(s), &s.Extra)
}

// versioned is what every body begins with.
type versioned struct {
	V int `json:"v"`
}

// decode reads a body of version 1 into v. A newer version is ErrFormat: what
// it says must not be taken for nothing.
func decode(name string, body []byte, v any) error {
	var ver versioned
	if err := json.Unmarshal(body, &ver); err != nil {
		return fmt.Errorf("%s: %w", name, chunk.ErrCorrupt)
	}
	if ver.V != 1 {
		return fmt.Errorf("%s: version %d, this program reads version 1: %w", name, ver.V, ErrFormat)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: %w", name, chunk.ErrCorrupt)
	}
	return nil
}

// clockSlack is how far a backend's clock may be behind without anybody being
// suspected.
const clockSlack = 5 * time.Minute

// When is the time that counts for the order of snapshots: the record's own
// word, but not later than the backend saw it. A clock that was ahead makes no
// snapshot the newest for ever.
func (s *Snapshot) When() time.Time {
	// A backend's time may be coarse, and copies may have lost it.
	if s.ModTime.Unix() > 0 && s.ModTime.Before(s.Time.Add(-clockSlack)) {
		return s.ModTime
	}
	return s.Time
}
