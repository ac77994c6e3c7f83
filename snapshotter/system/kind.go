package system

import (
	"context"
	"flag"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// Kind is a kind of system, as the program offers it. A kind's package has one, and
// is not changed after the program's start.
type Kind struct {
	Name  string // as --system takes it
	Short string // one line
	Help  string // what to know before its options, for people; lines of up to 80 characters

	Modes     []Mode
	Restores  string // how it is brought back; one line
	Selective bool   // a path of a snapshot can be restored alone

	// Flags defines the options, in the names that the system's own tools have
	// for them. What it returns is called once they are parsed, and opens no
	// connection: it says whether the options can be meant so.
	Flags func(f *flag.FlagSet) Opener

	// Env are the environment variables that count where no option does.
	Env []Variable

	// Import reads a file that the system's own tools have written, as Capture does
	// the system, and says when that was. nil: there are no such files.
	Import func(ctx context.Context, file string, opt CaptureOptions) (Capture, time.Time, error)

	// View makes of a stored snapshot's root what people see of it: a pure
	// function of what is stored. nil: they see what is stored.
	View func(ctx context.Context, root tree.Numbered, info Info, opt ViewOptions) (tree.Numbered, error)
}

// ViewOptions say how a view is to look.
type ViewOptions struct {
	Secrets bool // show what is masked otherwise
}

// Opener makes a System of parsed options. getenv is os.Getenv, or a test's. A
// Restore needs options that a Capture does not, and the other way round: whether
// they are there is for those to say.
type Opener func(getenv func(string) string) (System, error)

// Variable is an environment variable.
type Variable struct{ Name, Short string }

// Has reports whether the kind has the mode.
func (k *Kind) Has(m Mode) bool {
	for _, have := range k.Modes {
		if have == m {
			return true
		}
	}
	return false
}
