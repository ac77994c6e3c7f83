package featurebase

import (
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// Kind is the kind "featurebase".
var Kind = system.Kind{
	Name:  "featurebase",
	Short: "FeatureBase 3 (Pilosa), over its HTTP API",
	Help: `The whole cluster is captured from any one of its nodes, in the layout of
"featurebase backup". Options and variables are those of its tool: each option counts
as PILOSA_ and its name in capitals, too. --mode light has the data of the indexes
that --data names; scratch space takes what is captured once.

  cutbank snapshot --system featurebase -- --host fb1:10101 --concurrency 4
  cutbank snapshot --system featurebase --mode light --data users -- --host fb1:10101
  cutbank snapshot --system featurebase -- --dir /backups/of/featurebase-backup
  cutbank restore fb/latest --system featurebase -- --host new1:10101
  cutbank restore fb/latest:indexes/users --system featurebase -- --host new1:10101
  cutbank restore fb/latest DIR      # for "featurebase restore -s DIR"`,
	Modes:     []system.Mode{system.Full, system.Light, system.Dataless},
	Restores:  "into a running cluster of any size, as a whole or index by index; indexes that are there only with --force",
	Selective: true,
	Flags:     flags,
	Env: []system.Variable{
		{Name: "PILOSA_HOST", Short: "as --host, and so on for each option"},
		{Name: "PILOSA_AUTH_TOKEN", Short: "the token; nobody else on the machine sees it there"},
	},
}

// options are the tool's own.
type options struct {
	host, index         string
	concurrency         int
	retryPeriod         time.Duration
	headerTimeout       time.Duration
	token               string
	ca, cert, key       string
	skipVerify          bool
	dir                 string
	tokenOnLine         bool
	noSync, ignoreSpace bool
	pprof               string
	clientVerification  bool
}

// System is a FeatureBase cluster, or a directory that "featurebase backup" made.
type System struct {
	opt    options
	client *client // nil with a directory
}

func flags(f *flag.FlagSet) system.Opener {
	o := &options{}
	f.StringVar(&o.host, "host", "localhost:10101", "any node: `HOST:PORT`, or https://HOST:PORT")
	f.StringVar(&o.index, "index", "", "only this index: `name`")
	f.IntVar(&o.concurrency, "concurrency", 1, "`number` of files to move at a time, up to 64")
	f.DurationVar(&o.retryPeriod, "retry-period", time.Minute, "`duration` for which what fails is tried again, at each node")
	f.DurationVar(&o.headerTimeout, "header-timeout", 3*time.Second, "`duration` to wait for a node to begin its answer")
	f.StringVar(&o.token, "auth-token", "", "`token` (JWT); others on this machine see it there, and do not see PILOSA_AUTH_TOKEN")
	f.StringVar(&o.ca, "tls.ca-certificate", "", "`file` with the certificates that nodes must have")
	f.StringVar(&o.cert, "tls.certificate", "", "`file` with the client's certificate")
	f.StringVar(&o.key, "tls.key", "", "`file` with the client's key")
	f.BoolVar(&o.skipVerify, "tls.skip-verify", false, "believe any certificate")
	f.StringVar(&o.dir, "dir", "", "snapshot: take in what \"featurebase backup\" wrote to this `directory`, not a cluster")
	// What follows scripts may have, and means nothing here.
	f.BoolVar(&o.noSync, "no-sync", false, "of the tool's; nothing here, the repository is always synced")
	f.BoolVar(&o.ignoreSpace, "ignore-space-check", false, "of the tool's; nothing here")
	f.BoolVar(&o.clientVerification, "tls.enable-client-verification", false, "of the tool's; nothing here")
	f.StringVar(&o.pprof, "pprof", "", "of the tool's; nothing here: `address`")
	return func(getenv func(string) string) (system.System, error) {
		if err := o.environment(f, getenv); err != nil {
			return nil, err
		}
		switch {
		case o.concurrency < 1 || o.concurrency > 64:
			return nil, fmt.Errorf("--concurrency %d: from 1 to 64", o.concurrency)
		case o.retryPeriod < 0 || o.headerTimeout <= 0:
			return nil, errors.New("--retry-period and --header-timeout: durations, such as 1m")
		}
		if o.dir != "" {
			return &System{opt: *o}, nil
		}
		c, err := newClient(o)
		return &System{opt: *o, client: c}, err
	}
}

// environment sets the options that were not given from variables, as the tool does.
func (o *options) environment(f *flag.FlagSet, getenv func(string) string) error {
	given := map[string]bool{}
	f.Visit(func(x *flag.Flag) { given[x.Name] = true })
	o.tokenOnLine = given["auth-token"]
	var err error
	f.VisitAll(func(x *flag.Flag) {
		name := "PILOSA_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(x.Name))
		v := getenv(name)
		if v == "" || given[x.Name] || x.Name == "dir" || err != nil {
			return
		}
		if serr := x.Value.Set(v); serr != nil {
			err = fmt.Errorf("%s: it is no value for --%s", name, x.Name)
		}
	})
	return err
}

// started prepares the client for one run.
func (s *System) started(now func() time.Time, logf func(string, ...any)) {
	if s.client != nil {
		s.client.now, s.client.logf = now, logf
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if strings.HasSuffix(what, "x") {
		what += "e" // indexes
	}
	return strconv.Itoa(n) + " " + what + "s"
}
