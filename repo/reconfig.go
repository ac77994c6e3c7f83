package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// maxConfig bounds a config's stored form in bytes: what is larger is none.
const maxConfig = 16 << 20

func configName(n int) string { return "config/" + strconv.Itoa(n) }

// readConfig takes the newest config that proves itself, and what it says of
// key epochs.
func (r *Repo) readConfig(ctx context.Context) error {
	cfg, n, err := r.newestConfig(ctx)
	if err != nil {
		return err
	}
	r.cfg, r.configN = cfg, n
	return r.publish(cfg)
}

// newestConfig returns the newest config that proves itself, and its number.
// One that does not is passed over, and verify names it: whoever may write to
// the storage could have put it there.
func (r *Repo) newestConfig(ctx context.Context) (cfg Config, n int, err error) {
	var ns []int
	for info, err := range r.from(ctx).List(ctx, "config/") {
		if err != nil {
			return cfg, 0, err
		}
		if n, err := strconv.Atoi(strings.TrimPrefix(info.Name, "config/")); err == nil && n > 0 && info.Size <= maxConfig {
			ns = append(ns, n)
		}
	}
	if len(ns) == 0 {
		return cfg, 0, noStart(ctx, r.b, "config")
	}
	slices.Sort(ns)
	var first error
	for _, n := range slices.Backward(ns) {
		p, err := r.from(ctx).Get(ctx, configName(n), 0, -1)
		if err != nil { // an older one must not be taken because of a bad line
			return cfg, 0, err
		}
		cfg, err := r.parseConfig(configName(n), p)
		if err == nil || errors.Is(err, ErrFormat) {
			return cfg, n, err
		}
		r.opt.Logf("%v", err)
		if first == nil {
			first = err
		}
	}
	return cfg, 0, first
}

// parseConfig proves one config.
func (r *Repo) parseConfig(name string, p []byte) (cfg Config, err error) {
	o, err := r.openOwners(name, seal.KindConfig, p)
	if err != nil {
		return cfg, err
	}
	if err := decode(name, o.Body, &cfg); err != nil {
		return cfg, err
	}
	if id := r.k.Ring().Repo; cfg.Repo.String() != id {
		return cfg, fmt.Errorf("%s is of repository %s, the key of %s: %w", name, cfg.Repo, id, chunk.ErrCorrupt)
	}
	if err := cfg.check(); err != nil {
		return cfg, fmt.Errorf("%s: %w", name, err)
	}
	return cfg, nil
}

// changeConfig puts the next config: the newest one as change makes it. Where
// others change it at the same time, change is called again with what they have
// made of it. An error of change ends it, and nothing is put. Processes that are
// running see a change when they begin a session, as far as it is about keys;
// the rest when they start again. The caller has checked that the owner acts.
func (r *Repo) changeConfig(ctx context.Context, change func(*Config) error) error {
	cfg, n, err := r.newestConfig(ctx)
	if err != nil {
		return err
	}
	// Junk under the next numbers must not use the numbers up, and is stepped over.
	next := n + 1
	for range 100 {
		changed := cfg
		if err := change(&changed); err != nil {
			return err
		}
		body, err := json.Marshal(&changed)
		if err != nil {
			return err
		}
		name := configName(next)
		p, err := r.k.Seal(name, seal.KindConfig, seal.ForList, body, r.opt.Random)
		if err != nil {
			return err
		}
		err = r.b.Put(ctx, name, p)
		if err == nil {
			return nil
		}
		got, gerr := r.b.Get(context.WithoutCancel(ctx), name, 0, -1)
		if gerr == nil && bytes.Equal(got, p) {
			return nil // the answer was lost, the config was not
		}
		if !errors.Is(err, fs.ErrExist) || gerr != nil {
			return err
		}
		if other, oerr := r.parseConfig(name, got); oerr == nil {
			cfg = other
		} else if errors.Is(oerr, ErrFormat) {
			return oerr
		}
		next++
	}
	return fmt.Errorf("config/%d to config/%d are all taken by what is no config: remove them: %w", n+1, next-1, chunk.ErrCorrupt)
}

// published returns the epochs that the owner has published: what is new is
// sealed for the newest. Before the first rotation it is what the ring began with.
func (r *Repo) published(cfg Config) []seal.Epoch {
	if len(cfg.Epochs) == 0 {
		return r.k.Ring().Epochs[:1]
	}
	epochs := make([]seal.Epoch, len(cfg.Epochs))
	for i, e := range cfg.Epochs {
		epochs[i] = seal.Epoch{N: e.N, Public: e.Public}
	}
	return epochs
}

func (r *Repo) publish(cfg Config) error {
	if err := r.k.Publish(r.published(cfg)); err != nil {
		return fmt.Errorf("key epochs of the config: %w", err)
	}
	return nil
}
