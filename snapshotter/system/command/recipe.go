package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// recipe is what a file in JSON says, and the options of the same names.
type recipe struct {
	Pre   string `json:"pre"`
	Post  string `json:"post"`
	Abort string `json:"abort"`

	Stream         string `json:"stream"`
	StreamLight    string `json:"stream-light"`
	StreamDataless string `json:"stream-dataless"`
	As             string `json:"as"`
	Dir            string `json:"dir"`

	Version string `json:"version-cmd"`
	Cluster string `json:"cluster-cmd"`

	Restore         string `json:"restore"`
	RestoreLight    string `json:"restore-light"`
	RestoreDataless string `json:"restore-dataless"`

	Timeout     span `json:"timeout"`
	HookTimeout span `json:"hook-timeout"`
}

// span is a duration as people write it: 90s, 10m, 2h.
type span time.Duration

func (s *span) String() string { return time.Duration(*s).String() }

// Set implements flag.Value.
func (s *span) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is no duration: write it like 90s, 10m or 2h", text)
	}
	*s = span(d)
	return nil
}

// UnmarshalText reads what Set does.
func (s *span) UnmarshalText(b []byte) error { return s.Set(string(b)) }

// texts are the options that are text, in the order of the help.
func (r *recipe) texts() []struct {
	name, usage string
	at          *string
} {
	return []struct {
		name, usage string
		at          *string
	}{
		{"pre", "`command` that runs first; if it fails nothing is captured", &r.Pre},
		{"post", "`command` that runs last, once the snapshot is kept", &r.Post},
		{"abort", "`command` that runs instead of post where the snapshot is not kept", &r.Abort},
		{"stream", "`command` whose standard output is kept, if it exits with 0", &r.Stream},
		{"stream-light", "the same for --mode light; CUTBANK_DATA has what --data names", &r.StreamLight},
		{"stream-dataless", "the same for --mode dataless", &r.StreamDataless},
		{"as", "`name` of the file that holds the stream", &r.As},
		{"dir", "keep what is in the directory `path`", &r.Dir},
		{"version-cmd", "`command` that prints the system's version", &r.Version},
		{"cluster-cmd", "`command` that prints what tells this system from others", &r.Cluster},
		{"restore", "`command` that gets the stream on standard input, or runs when the directory is restored", &r.Restore},
		{"restore-light", "the same for a light snapshot", &r.RestoreLight},
		{"restore-dataless", "the same for a dataless snapshot", &r.RestoreDataless},
	}
}

// flags defines the options. An option has the last word over the recipe's file.
func flags(f *flag.FlagSet) system.Opener {
	var given recipe
	var file string
	f.StringVar(&file, "recipe", "", "`file` with these options in JSON: {\"stream\": \"slapcat\", \"as\": \"all.ldif\"}")
	for _, o := range given.texts() {
		f.StringVar(o.at, o.name, "", o.usage)
	}
	f.Var(&given.Timeout, "timeout", "`duration` that the stream, or the restore command, may take (default: any)")
	f.Var(&given.HookTimeout, "hook-timeout", "`duration` that each other command may take (default 10m)")
	return func(getenv func(string) string) (system.System, error) {
		r := recipe{HookTimeout: span(10 * time.Minute)}
		if file != "" {
			if err := r.load(file); err != nil {
				return nil, err
			}
		}
		from := given.texts()
		for i, o := range r.texts() {
			if *from[i].at != "" {
				*o.at = *from[i].at
			}
		}
		if given.Timeout != 0 {
			r.Timeout = given.Timeout
		}
		if given.HookTimeout != 0 {
			r.HookTimeout = given.HookTimeout
		}
		if err := r.check(); err != nil {
			return nil, err
		}
		return &System{recipe: r}, nil
	}
}

// load reads a recipe's file.
func (r *recipe) load(file string) error {
	p, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("--recipe: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields()
	if err = d.Decode(r); err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("something stands behind the object")
		}
	}
	if err != nil {
		return fmt.Errorf("--recipe %s: %w", file, err)
	}
	return nil
}

// check says whether the recipe can be meant so.
func (r *recipe) check() error {
	streams := r.Stream + r.StreamLight + r.StreamDataless
	switch {
	case streams != "" && r.As == "":
		return errors.New("--as NAME: what the stream is called")
	case streams != "" && r.Dir != "":
		return errors.New("--dir and --stream exclude each other")
	case r.As != "" && (!tree.ValidName(r.As) || len(r.As) > 255):
		return fmt.Errorf("--as %q can be no file's name", r.As)
	}
	if r.Dir != "" {
		abs, err := filepath.Abs(r.Dir)
		r.Dir = abs
		return err
	}
	return nil
}

// pick returns of three texts the one for a mode.
func pick(m system.Mode, full, light, dataless string) string {
	switch m {
	case system.Light:
		return light
	case system.Dataless:
		return dataless
	}
	return full
}
