package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// ErrKey says that no key of the repository opens with what was given.
var ErrKey = errors.New("wrong password or key")

// ErrFormat says that a repository was written by a newer program.
var ErrFormat = errors.New("format of a newer cutbank")

// errIncomplete is chunk.ErrCorrupt for who has lost what a repository begins with.
var errIncomplete = fmt.Errorf("%w: bring that back from a copy of the repository; do not make a new one here", chunk.ErrCorrupt)

// ErrNoRepo says that there is no repository where one was looked for.
var ErrNoRepo = errors.New("no repository here")

// Config is the body of config/<n>: what all writers of a repository agree on.
// The highest n wins. It is signed by the owner, and sealed, because the
// splitter's parameters are a secret.
type Config struct {
	V          int            `json:"v"`
	Repo       ID             `json:"repo"`
	Created    time.Time      `json:"created"`
	Splitter   SplitterConfig `json:"splitter"`
	FrameSize  int            `json:"frame_size"`
	PackSize   int            `json:"pack_size"`
	AppendOnly bool           `json:"append_only,omitempty"`
	Lock       string         `json:"lock,omitempty"`   // how long objects are locked, as time.ParseDuration reads it
	Parity     string         `json:"parity,omitempty"` // per cent of a pack, as ParseParity reads it

	// NoFencing says that the place does not keep to create-if-absent. Then no
	// writer is declared dead: nothing would keep it from committing all the same.
	NoFencing bool `json:"no_fencing,omitempty"`

	// ListingLag is how long a change may stay unseen by the place's listings, as
	// ParseLag reads it, where the place itself says less.
	ListingLag string `json:"listing_lag,omitempty"`

	// Epochs are the key epochs since the first rotation, oldest first: what is
	// new is sealed for the newest. Removed are the keys that were removed: none
	// of them is given a later epoch, if somebody puts it back.
	Epochs  []EpochConfig `json:"epochs,omitempty"`
	Removed []ID          `json:"removed_keys,omitempty"`

	Extra map[string]json.RawMessage `json:"-"`
}

// EpochConfig is the public half of a key epoch (see seal.Epoch).
type EpochConfig struct {
	N      uint32 `json:"n"`
	Public []byte `json:"public"`
}

// SplitterConfig is chunk.Params as it is stored.
type SplitterConfig struct {
	Kind   string `json:"kind"`
	Min    int    `json:"min"`
	Avg    int    `json:"avg"`
	Max    int    `json:"max"`
	Secret uint64 `json:"secret,string"`
}

// MarshalJSON writes the known fields and those of newer versions.
func (c *Config) MarshalJSON() ([]byte, error) {
	type plain Config
	return seal.MergeJSON((*plain)(c), c.Extra)
}

// UnmarshalJSON reads a config and keeps what it does not know.
func (c *Config) UnmarshalJSON(p []byte) error {
	type plain Config
	return seal.SplitJSON(p, (*plain)(c), &c.Extra)
}

// Params returns the splitter's parameters.
func (c *Config) Params() chunk.Params {
	s := c.Splitter
	return chunk.Params{Kind: chunk.SplitterKind(s.Kind), Min: s.Min, Avg: s.Avg, Max: s.Max, Secret: s.Secret}
}

const (
	minFrame = 4 << 10
	maxFrame = 8 << 20
	minPack  = 64 << 10
	maxPack  = 256 << 20
)

func (c *Config) check() error {
	if err := c.Params().Validate(); err != nil {
		return err
	}
	if c.FrameSize < minFrame || c.FrameSize > maxFrame {
		return fmt.Errorf("frame size of %d bytes: want %d to %d", c.FrameSize, minFrame, maxFrame)
	}
	if c.PackSize < minPack || c.PackSize > maxPack {
		return fmt.Errorf("pack size of %d bytes: want %d to %d", c.PackSize, minPack, maxPack)
	}
	for i, e := range c.Epochs {
		if e.N == 0 || i > 0 && e.N <= c.Epochs[i-1].N {
			return fmt.Errorf("key epochs out of order: %w", chunk.ErrCorrupt)
		}
	}
	if c.Splitter.Max > 16<<20 {
		return fmt.Errorf("chunks of up to %d bytes: want 16 MiB at most", c.Splitter.Max)
	}
	if _, err := ParseLag(c.ListingLag); err != nil {
		return err
	}
	if err := c.checkLock(); err != nil {
		return err
	}
	_, err := ParseParity(c.Parity)
	return err
}

// maxLag bounds how long each step of a protocol waits.
const maxLag = time.Hour

// ParseLag reads how long a change may stay unseen by listings: "90s" or "2m",
// up to an hour; nothing means no time.
func ParseLag(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxLag {
		return 0, fmt.Errorf("listing lag of %q: want a time such as 90s or 2m, up to %s", s, maxLag)
	}
	return d, nil
}

// lag is how long a change may stay unseen by listings.
func (r *Repo) lag() time.Duration {
	said, _ := ParseLag(r.cfg.ListingLag) // checked when it was read
	return max(r.b.Lag(), said)
}

// ParseParity reads how much parity each pack gets, in per cent of its size:
// "2", "2%" or "2.5%"; nothing and "0" mean none.
func ParseParity(s string) (percent float64, err error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0, nil
	}
	percent, err = strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(s, "%")), 64)
	if err != nil || !(percent == 0 || percent >= parity.MinPercent && percent <= parity.MaxPercent) {
		return 0, fmt.Errorf("parity of %q: want 0, or %d%% to %d%%", s, parity.MinPercent, parity.MaxPercent)
	}
	return percent, nil
}

// ParityPercent is how much parity each new pack gets; 0: none.
func (c *Config) ParityPercent() float64 {
	percent, _ := ParseParity(c.Parity) // checked when it was read
	return percent
}

// formatParity writes what ParseParity reads.
func formatParity(percent float64) string {
	if percent == 0 {
		return ""
	}
	return strconv.FormatFloat(percent, 'g', -1, 64)
}

// formatError turns what lower floors say of versions into ErrFormat.
func formatError(err error) error {
	if errors.Is(err, seal.ErrVersion) {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return err
}
