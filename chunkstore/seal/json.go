package seal

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// MergeJSON encodes v, a pointer to a struct, and adds extra's fields, which
// SplitJSON had kept.
func MergeJSON(v any, extra map[string]json.RawMessage) ([]byte, error) {
	p, err := json.Marshal(v)
	if err != nil || len(extra) == 0 {
		return p, err
	}
	p = p[:len(p)-1]
	for _, k := range slices.Sorted(maps.Keys(extra)) {
		if len(p) > 1 {
			p = append(p, ',')
		}
		name, _ := json.Marshal(k)
		p = append(append(append(p, name...), ':'), extra[k]...)
	}
	return append(p, '}'), nil
}

// SplitJSON decodes p into v, a pointer to a struct, and keeps in extra the
// fields that v does not have, so that rewriting an object of a newer version
// loses nothing.
func SplitJSON(p []byte, v any, extra *map[string]json.RawMessage) error {
	if err := json.Unmarshal(p, v); err != nil {
		return err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(p, &all); err != nil {
		return err
	}
	for _, k := range jsonFields(v) {
		delete(all, k)
	}
	*extra = nil
	if len(all) > 0 {
		*extra = all
	}
	return nil
}

// jsonFields lists the names of v's fields, those that omitempty leaves out
// included.
func jsonFields(v any) []string {
	t := reflect.TypeOf(v).Elem()
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}
