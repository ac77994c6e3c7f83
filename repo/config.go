package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
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
	Lock       string         `json:"lock,omitempty"`   // object lock, a duration
	Parity     string         `json:"parity,omitempty"` // per cent of a pack

	Extra map[string]json.RawMessage `json:"-"`
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
	if c.Splitter.Max > 16<<20 {
		return fmt.Errorf("chunks of up to %d bytes: want 16 MiB at most", c.Splitter.Max)
	}
	return nil
}

// formatError turns what lower floors say of versions into ErrFormat.
func formatError(err error) error {
	if errors.Is(err, seal.ErrVersion) {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return err
}
