package consul

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
)

// Keys are any bytes, and names of files are not. A key is cut at its slashes, and in
// each part
//
//   - "%", NUL, and each byte of a part that is "." or "..", become "%" and two
//     hexadecimal digits;
//   - a part that is empty becomes "%": "a/" is a/%, and "/a" is %/a;
//   - a part that is longer than 255 bytes by then is continued in a directory below:
//     what goes on ends with "%+";
//   - the file of a key that has other keys below it ends with "%": of "a" and "a/b"
//     the first is a%, and a is the directory of the second.
//
// No part has a "%" that is followed by anything but two digits, so each path means one
// key.

const (
	maxName = 255
	more    = "%+"
)

// keyPath returns the path of a key's file, below kv. parent says that other keys
// begin with the key and a slash.
func keyPath(key string, parent bool) string {
	var b strings.Builder
	parts := strings.Split(key, "/")
	for i, part := range parts {
		name := escape(part)
		for len(name) > maxName-1 { // one is for the "%" of a file that has a directory beside it
			n := maxName - len(more)
			for back := 1; back <= 2; back++ { // never within an escape
				if name[n-back] == '%' {
					n -= back
					break
				}
			}
			b.WriteString(name[:n] + more + "/")
			name = name[n:]
		}
		b.WriteString(name)
		if i < len(parts)-1 {
			b.WriteByte('/')
		}
	}
	// An empty last part stands as "%" already, and nothing can be below it but what
	// has an empty part there too, whose directory it would be.
	if parent {
		b.WriteByte('%')
	}
	return b.String()
}

// escape makes a part of a key a name; it may be too long.
func escape(part string) string {
	switch part {
	case "":
		return "%"
	case ".":
		return "%2E"
	case "..":
		return "%2E%2E"
	}
	if !strings.ContainsAny(part, "%\x00/") {
		return part
	}
	var b strings.Builder
	for i := range len(part) {
		switch c := part[i]; c {
		case '%', 0, '/':
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// pathKey is the key whose file has the path.
func pathKey(path string) (string, error) {
	var key strings.Builder
	parts := strings.Split(path, "/")
	for i := 0; i < len(parts); i++ {
		name := parts[i]
		for strings.HasSuffix(name, more) && i+1 < len(parts) {
			i++
			name = strings.TrimSuffix(name, more) + parts[i]
		}
		last := i == len(parts)-1
		if name != "%" && last {
			name = strings.TrimSuffix(name, "%") // it has a directory beside it
		}
		part, err := unescape(name)
		if err != nil {
			return "", fmt.Errorf("%q is no path of a key: %w", path, err)
		}
		key.WriteString(part)
		if !last {
			key.WriteByte('/')
		}
	}
	return key.String(), nil
}

func unescape(name string) (string, error) {
	if name == "%" {
		return "", nil
	}
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if name[i] != '%' {
			b.WriteByte(name[i])
			continue
		}
		var c byte
		if i+2 >= len(name) {
			return "", fmt.Errorf("%q ends within an escape", name)
		}
		if _, err := fmt.Sscanf(name[i+1:i+3], "%02X", &c); err != nil {
			return "", fmt.Errorf("%q: %w", name, err)
		}
		b.WriteByte(c)
		i += 2
	}
	return b.String(), nil
}

// hasBelow reports whether sorted keys have some that begin with the key and a slash.
func hasBelow(sorted []string, key string) bool {
	i, _ := slices.BinarySearch(sorted, key+"/")
	return i < len(sorted) && strings.HasPrefix(sorted[i], key+"/")
}

// fileName makes any text one name, for what is no key and need not be turned back.
func fileName(s string) string {
	name := escape(s)
	if len(name) <= maxName-16 { // room for what tells equal ones apart
		return name
	}
	return name[:maxName-40] + fmt.Sprintf("%%%016x", nameSum(s))
}

func nameSum(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}
