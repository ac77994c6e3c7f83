package featurebase

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

func parsed(t *testing.T, text string) *schema {
	t.Helper()
	s, err := parseSchema([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func textOf(t *testing.T, s *schema) string {
	t.Helper()
	p, err := s.text()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(p)), "")
}

// TestNoSchema: a node that could not read the schema says so with null, one of an empty
// cluster with [].
func TestNoSchema(t *testing.T) {
	for _, p := range []string{`{"indexes":null}`, `{}`} {
		if s, err := parseSchema([]byte(p)); !errors.Is(err, system.ErrIncomplete) {
			t.Errorf("%s: %+v, %v", p, s, err)
		}
	}
	if s := parsed(t, `{"indexes":[]}`); len(s.indexes) != 0 || textOf(t, s) != `{"indexes":[]}` {
		t.Errorf("%+v", s)
	}
	for _, p := range []string{`{"indexes":[{"name":"a","fields":[null]}]}`, `{"indexes":[{"name":"a","fields":[{"name":"f","options":{"type":"timestamp","epoch":"2020-01-01T00:00:00Z","timeUnit":"week"}}]}]}`} {
		if s, err := parseSchema([]byte(p)); err == nil {
			t.Errorf("%s: %+v", p, s)
		}
	}
}

// TestMade: indexes are made first, then the fields with the keys of others and those
// with bounds of 0, which are not lost.
func TestMade(t *testing.T) {
	s := parsed(t, `{"indexes":[
		{"name":"a","new":1,"fields":[{"name":"b","options":{"type":"int","base":0,"bitDepth":4,"min":-9,"max":9,"foreignIndex":"b"}},{"name":"tag","options":{"type":"set"}}]},
		{"name":"b","fields":[{"name":"zero","options":{"type":"int","base":0,"bitDepth":4,"min":0,"max":9,"foreignIndex":""}},{"name":"five","options":{"type":"int","base":5,"min":5,"max":9}},{"name":"c","options":{"type":"int","foreignIndex":"c"}}]},
		{"name":"c","fields":[{"name":"b","options":{"type":"int","foreignIndex":"b"}}]}]}`)
	var order []string
	for _, i := range s.indexes {
		order = append(order, i.Name)
	}
	if want := []string{"c", "b", "a"}; !slices.Equal(order, want) {
		t.Errorf("%q, want %q", order, want)
	}
	first, rest, err := s.made()
	if err != nil {
		t.Fatal(err)
	}
	var later []string
	for _, f := range rest {
		later = append(later, f.index+"."+f.field)
		if f.options["bitDepth"] != nil || f.options["base"] != nil || string(f.options["type"]) != `"int"` {
			t.Errorf("%s: %s", f.field, f.options)
		}
	}
	if want := []string{"c.b", "b.zero", "b.c", "a.b"}; !slices.Equal(later, want) {
		t.Errorf("%q, want %q", later, want)
	}
	if got := textOf(t, first); !strings.Contains(got, `"new":1`) || !strings.Contains(got, `"name":"five"`) || strings.Contains(got, "zero") || strings.Contains(got, "foreign") {
		t.Error(got)
	}
	if got := textOf(t, s); !strings.Contains(got, "zero") || len(s.index("a").Fields) != 2 || len(first.indexes[2].Fields) != 1 {
		t.Errorf("the schema itself was changed: %s", got)
	}
}

// TestEpoch: a timestamp field keeps what its values count from. The bounds are those
// that nodes gave.
func TestEpoch(t *testing.T) {
	field := func(epoch, unit, min, max string) string {
		return `{"indexes":[{"name":"a","fields":[{"name":"at","options":{"type":"timestamp","epoch":"` + epoch + `","bitDepth":0,"min":` + min + `,"max":` + max + `,"timeUnit":"` + unit + `"}}]}]}`
	}
	if got := textOf(t, parsed(t, field("2020-01-01T00:00:00Z", "ms", "-63713433599000", "251824463999000"))); !strings.Contains(got, `"base":1577836800000`) || !strings.Contains(got, `"epoch":"2020-01-01T00:00:00Z"`) {
		t.Error(got)
	}
	for _, c := range []struct{ unit, min, max, want string }{
		{"s", "-63713433599", "251824463999", `"base":1577836800,`},
		{"ns", "-4294967296000000000", "2717130496000000000", `"base":1577836800000000000,`},
		{"s", "-62135596799", "253402300799", `"base":0,`},
		{"s", "-5", "251824463999", `"base":0,`},
		{"s", "1.5", "null", `"base":0,`},
	} {
		s := parsed(t, field("1970-01-01T00:00:00Z", c.unit, c.min, c.max))
		warned := 0
		if err := s.epochs(true, func(string, ...any) { warned++ }); err != nil {
			t.Fatal(err)
		}
		got := textOf(t, s)
		mended := c.want != `"base":0,`
		if !strings.Contains(got, c.want) || strings.Contains(got, "2020-01-01") != mended || (warned == 1) != mended {
			t.Errorf("%+v: %d warnings, %s", c, warned, got)
		}
		// A cluster is believed, and what is odd is told.
		s, warned = parsed(t, field("1970-01-01T00:00:00Z", c.unit, c.min, c.max)), 0
		if err := s.epochs(false, func(string, ...any) { warned++ }); err != nil || (warned == 1) != mended || !strings.Contains(textOf(t, s), `"base":0`) {
			t.Errorf("%+v: %v, %d warnings", c, err, warned)
		}
	}
}

func TestDiffers(t *testing.T) {
	was := parsed(t, `{"indexes":[{"name":"a","options":{"keys":true},"fields":[{"name":"f","options":{"type":"int","base":7,"min":7,"bitDepth":3}},{"name":"at","options":{"type":"timestamp","epoch":"2020-01-01T00:00:00Z","timeUnit":"s"}}]}]}`).index("a")
	if wrong, other := was.differs(parsed(t, `{"indexes":[{"name":"a","options":{"keys":true},"fields":[{"name":"at","options":{"type":"timestamp","epoch":"2020-01-01T00:00:00Z","timeUnit":"s","new":1}},{"name":"f","options":{"type":"int","base":7,"min":7,"bitDepth":9}}]}]}`).index("a")); len(wrong)+len(other) > 0 {
		t.Errorf("%q %q", wrong, other)
	}
	wrong, other := was.differs(parsed(t, `{"indexes":[{"name":"a","fields":[{"name":"f","options":{"type":"int","base":0,"min":-7}},{"name":"at","options":{"type":"timestamp","epoch":"1970-01-01T00:00:00Z","timeUnit":"s"}}]}]}`).index("a"))
	if text := strings.Join(wrong, "\n"); len(wrong) != 4 || !strings.Contains(text, `has epoch "1970-01-01T00:00:00Z" instead of "2020-01-01T00:00:00Z"`) || !strings.Contains(text, "base 0 instead of 7") || len(other) != 1 || !strings.Contains(other[0], "min -7 instead of 7") {
		t.Errorf("%q %q", wrong, other)
	}
}
