package consul

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// TestHolds: what a cluster has from the beginning is nothing that is lost; all else is.
func TestHolds(t *testing.T) {
	fresh := []entry{
		{kindRegister, map[string]any{"Node": "s1", "Datacenter": "dc1"}},
		{kindRegister, map[string]any{"Node": "s1", "Service": map[string]any{"Service": "consul", "Meta": map[string]any{"version": "1.2.3"}}}},
		{kindRegister, map[string]any{"Node": "s1", "Check": map[string]any{"CheckID": "serfHealth"}}},
		{kindToken, map[string]any{"AccessorID": "1"}}, {kindToken, map[string]any{"AccessorID": "2"}},
		{kindPolicy, map[string]any{"Name": "1"}}, {kindPolicy, map[string]any{"Name": "2"}}, {kindFederation, map[string]any{"State": map[string]any{"Datacenter": "dc1"}}},
	}
	for want, more := range map[string][]entry{
		"":                         nil,
		"1 nodes without an agent": {{kindRegister, map[string]any{"Node": "router"}}},
		"1 keys":                   {kv("a", "")},
		"1 services":               {{kindRegister, map[string]any{"Node": "s1", "Service": map[string]any{"Service": "web"}}}},
		"3 policies":               {{kindPolicy, map[string]any{"Name": "3"}}},
		"1 records of type 99":     {{99, map[string]any{}}},
	} {
		sum, err := scan(bytes.NewReader(state(t, append(fresh[:len(fresh):len(fresh)], more...)...)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(sum.holds(), ", "); got != want {
			t.Errorf("%q, want %q: %s", got, want, fmt.Sprint(more))
		}
	}
}
