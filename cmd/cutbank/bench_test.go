package main

import (
	"errors"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/bench/dedup"
)

func TestParseColumn(t *testing.T) {
	for in, want := range map[string]string{"rabin:64KiB": "rabin-64KiB", "gear:16k": "gear-16KiB", "fixed:4MiB": "fixed-4MiB", "gear": "", "gear:": "", "lz4:64KiB": "", ":64KiB": "", "gear:9TiB": ""} {
		c, err := parseColumn(in)
		if want == "" {
			if !errors.Is(err, errUsage) {
				t.Errorf("%q: %v", in, err)
			}
		} else if err != nil || c.String() != want {
			t.Errorf("%q: %s, %v", in, c, err)
		}
	}
}

func TestPlot(t *testing.T) {
	got := plotText(&dedup.Report{Columns: []dedup.Result{{Column: "gear-64KiB", Ratio: 4}, {Column: "fixed-4MiB", Ratio: 1}, {Column: "none"}}})
	lines := strings.Split(got, "\n")
	if len(lines) != 4 || strings.Count(lines[0], "#") != 50 || strings.Count(lines[1], "#") != 13 || strings.Count(lines[2], "#") != 0 {
		t.Errorf("%q", got)
	}
	if plotText(&dedup.Report{}) != "" {
		t.Error("a plot of nothing")
	}
}

func TestMatching(t *testing.T) {
	ids := []string{"aa11", "aa22", "bb33"}
	for _, c := range []struct {
		prefixes, want []string
		ok             bool
	}{
		{nil, ids, true},
		{[]string{"bb", "aa1", "bb33"}, []string{"aa11", "bb33"}, true},
		{[]string{"aa"}, nil, false},
		{[]string{"cc"}, nil, false},
		{[]string{""}, nil, false},
	} {
		got, err := matching(ids, c.prefixes)
		if (err == nil) != c.ok || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v", c.prefixes, got, err)
		}
	}
}

func TestBuildOf(t *testing.T) {
	info := &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"}}}
	if b := buildOf(info, true); b != (build{"v1.2.3", "v1.2.3", "abc", true}) {
		t.Errorf("%+v", b)
	}
	if b := buildOf(nil, false); b.version != "(devel)" {
		t.Errorf("%+v", b)
	}
}
