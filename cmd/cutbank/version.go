package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    `version prints the version of the program, of Go, and of the repository format.`,
		Example: `  cutbank version --json`,
		Args:    exactly(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			b := buildOf(debug.ReadBuildInfo())
			dirty := ""
			if b.modified {
				dirty = ", modified"
			}
			if b.revision != "" {
				b.text += " (" + b.revision[:min(12, len(b.revision))] + dirty + ")"
			}
			a.printf("cutbank %s\n%s %s/%s\nrepository format %d\n", b.text, runtime.Version(), runtime.GOOS, runtime.GOARCH, seal.Version)
			return a.emit("version", object{"version": b.version, "revision": b.revision, "modified": b.modified, "go": runtime.Version(),
				"os": runtime.GOOS, "arch": runtime.GOARCH, "format": seal.Version})
		},
	}
}

// build is what the linker left of the program's origin.
type build struct {
	version, text, revision string
	modified                bool
}

func buildOf(info *debug.BuildInfo, ok bool) build {
	b := build{version: "(devel)"}
	if ok && info.Main.Version != "" {
		b.version = info.Main.Version
	}
	if ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.revision = s.Value
			case "vcs.modified":
				b.modified = s.Value == "true"
			}
		}
	}
	b.text = b.version
	return b
}

// programVersion is what records say of the program that wrote them.
func programVersion() string { return "cutbank " + buildOf(debug.ReadBuildInfo()).version }
