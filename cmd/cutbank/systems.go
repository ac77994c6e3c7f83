package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/command"
	"github.com/cutbankfs/cutbank/snapshotter/system/consul"
	"github.com/cutbankfs/cutbank/snapshotter/system/etcd"
	"github.com/cutbankfs/cutbank/snapshotter/system/featurebase"
	"github.com/cutbankfs/cutbank/snapshotter/system/postgresql"
)

// kinds are the systems that there are, by name.
var kinds = []*system.Kind{
	&command.Kind, &consul.Kind, &etcd.Kind, &featurebase.Kind, &postgresql.Kind,
}

// findKind returns the kind of that name; nil if there is none.
func findKind(name string) *system.Kind {
	for _, k := range kinds {
		if k.Name == name {
			return k
		}
	}
	return nil
}

// kindNames lists the kinds, for messages and completion.
func kindNames() []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.Name)
	}
	return names
}

func completeKinds(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var list []string
	for _, k := range kinds {
		list = append(list, k.Name+"\t"+k.Short)
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// systemFlag defines --system.
func systemFlag(c *cobra.Command, name *string, usage string) {
	c.Flags().StringVar(name, "system", "", usage)
	if err := c.RegisterFlagCompletionFunc("system", completeKinds); err != nil {
		panic(err) // the flag was defined one line above
	}
}

// systemHint says where options of a system stand, if one was named.
func systemHint(c *cobra.Command) string {
	if f := c.Flags().Lookup("system"); f == nil || !f.Changed {
		return ""
	}
	return "; options of the system stand behind --"
}

// restoreOnly begins the usage of options that have a meaning for restore alone.
const restoreOnly = "restore: "

// openSystem makes a system of its kind's name and options, to be captured or to be
// restored.
func openSystem(name string, options []string, capture bool) (*system.Kind, system.System, error) {
	k := findKind(name)
	if k == nil {
		return nil, nil, usagef("--system %q: use %s; `cutbank systems` lists what each can", name, strings.Join(kindNames(), ", "))
	}
	f := optionSet(k)
	open := k.Flags(f)
	if err := f.Parse(options); err != nil {
		return nil, nil, usagef("behind --: %v; see `cutbank systems %s`", err, k.Name)
	}
	if f.NArg() > 0 {
		return nil, nil, usagef("behind --: %q is no option; see `cutbank systems %s`", f.Arg(0), k.Name)
	}
	var idle []string
	f.Visit(func(o *flag.Flag) {
		if capture && strings.HasPrefix(o.Usage, restoreOnly) {
			idle = append(idle, "--"+o.Name)
		}
	})
	if len(idle) > 0 {
		return nil, nil, usagef("behind --: %s is for restore, and would have no effect here; see `cutbank systems %s`", strings.Join(idle, ", "), k.Name)
	}
	s, err := open(os.Getenv)
	if err != nil {
		return nil, nil, usagef("--system %s: %v; see `cutbank systems %s`", k.Name, err, k.Name)
	}
	return k, s, nil
}

// optionSet is a set of flags that says nothing by itself.
func optionSet(k *system.Kind) *flag.FlagSet {
	f := flag.NewFlagSet(k.Name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	return f
}

func (a *app) systemsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "systems [KIND]",
		Short: "List the running systems that snapshots can be made of",
		Long: `systems lists what "cutbank snapshot --system KIND" can capture and "cutbank
restore --system KIND" can bring back: in which modes, how, whether a part can be
restored alone, and whether a view shows its snapshots as people read them. With
KIND it prints the options of that kind, which stand behind "--" on the command
line, with one dash or two, and the environment variables that count where no
option does.`,
		Example: `  cutbank systems
  cutbank systems postgresql
  cutbank snapshot -r /backup --system postgresql -- -h /run/postgresql`,
		Args:              between(0, 1, "one KIND at most"),
		ValidArgsFunction: completeKinds,
		RunE: func(c *cobra.Command, args []string) error {
			return a.buffered(func() error { return a.systems(args) })
		},
	}
}

func (a *app) systems(args []string) error {
	list := kinds
	if len(args) > 0 {
		k := findKind(args[0])
		if k == nil {
			return usagef("there is no system %q: use %s", args[0], strings.Join(kindNames(), ", "))
		}
		list = []*system.Kind{k}
		a.printKind(k)
	} else if err := a.table(func(w *tabwriter.Writer) { kindTable(w, list) }); err != nil {
		return err
	}
	for _, k := range list {
		if err := a.emit("system", kindObject(k)); err != nil {
			return err
		}
	}
	return nil
}

func kindTable(w *tabwriter.Writer, list []*system.Kind) {
	fmt.Fprintln(w, "KIND\tMODES\tPARTS\tVIEW\tWHAT")
	yes := map[bool]string{true: "yes", false: "no"}
	for _, k := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.Name, modesText(k), yes[k.Selective], yes[k.View != nil], k.Short)
	}
}

func modesText(k *system.Kind) string {
	var list []string
	for _, m := range k.Modes {
		list = append(list, string(m))
	}
	return strings.Join(list, ", ")
}

// printKind prints all that is to be known before one is used.
func (a *app) printKind(k *system.Kind) {
	a.printf("%s: %s\n\n%s\n\nModes: %s.\nRestore: %s\n\nOptions, behind \"--\":\n", k.Name, k.Short, strings.TrimSpace(k.Help), modesText(k), k.Restores)
	f := optionSet(k)
	k.Flags(f)
	var b bytes.Buffer
	f.SetOutput(&b)
	f.PrintDefaults()
	a.printf("%s", b.String())
	if len(k.Env) == 0 {
		return
	}
	a.printf("\nEnvironment:\n")
	for _, v := range k.Env {
		a.printf("  %s\n    \t%s\n", v.Name, v.Short)
	}
}

func kindObject(k *system.Kind) object {
	options, env := []object{}, []object{}
	f := optionSet(k)
	k.Flags(f)
	f.VisitAll(func(o *flag.Flag) {
		options = append(options, object{"name": o.Name, "usage": o.Usage, "default": o.DefValue})
	})
	for _, v := range k.Env {
		env = append(env, object{"name": v.Name, "usage": v.Short})
	}
	return object{"kind": k.Name, "short": k.Short, "modes": k.Modes, "restore": k.Restores, "selective": k.Selective, "view": k.View != nil,
		"options": options, "environment": env}
}

// systemText is what a list says of a snapshot's system; empty for files.
func systemText(raw []byte) string {
	info, err := system.ParseInfo(raw)
	if err != nil || info.Kind == "" {
		return ""
	}
	text := quote(info.Kind)
	if info.Version != "" {
		text += " " + quote(info.Version)
	}
	if info.Cluster != "" {
		text += " " + quote(info.Cluster)
	}
	return text
}
