package backendtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Archive is a bucket with versioning and Object Lock, in memory: nothing goes but
// versions that are removed by their IDs, and those only when their locks have
// passed.
type Archive struct {
	// Now is the server's clock; nil: the system's.
	Now func() time.Time

	// Terse does not say in the answer to HEAD how long a version is locked that is
	// not the newest, and begins each page of versions with the last of the one
	// before, as a real server does.
	Terse bool

	// Unlockable is a bucket that was made without Object Lock.
	Unlockable bool

	mu   sync.Mutex
	n    int
	keys map[string][]*archived // the newest last
}

type archived struct {
	id     string
	p      []byte
	mark   bool
	time   time.Time
	locked time.Time
}

func (a *Archive) now() time.Time {
	if a.Now == nil {
		return time.Now()
	}
	return a.Now()
}

// find returns a version, the newest if id is empty; nil if there is none.
func (a *Archive) find(key, id string) *archived {
	vs := a.keys[key]
	if id == "" && len(vs) > 0 {
		return vs[len(vs)-1]
	}
	if i := slices.IndexFunc(vs, func(v *archived) bool { return v.id == id }); i >= 0 {
		return vs[i]
	}
	return nil
}

// add puts a version.
func (a *Archive) add(key string, v archived) {
	if a.keys == nil {
		a.keys = map[string][]*archived{}
	}
	a.n++
	v.id, v.time = fmt.Sprintf("v%06d", a.n), a.now()
	a.keys[key] = append(a.keys[key], &v)
}

func (a *Archive) serve(w http.ResponseWriter, r *http.Request, key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := r.URL.Query()
	v := a.find(key, q.Get("versionId"))
	switch {
	case key == "" && r.Method == http.MethodGet:
		a.bucket(w, r)
	case r.Method == http.MethodPut && q.Has("retention"):
		a.retain(w, r, v)
	case r.Method == http.MethodPut:
		a.put(w, r, key)
	case r.Method == http.MethodDelete && q.Get("versionId") == "":
		a.add(key, archived{mark: true})
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodDelete:
		if v != nil && v.locked.After(a.now()) {
			S3Error(w, http.StatusForbidden, "AccessDenied")
			return
		}
		a.keys[key] = slices.DeleteFunc(a.keys[key], func(x *archived) bool { return x == v })
		w.WriteHeader(http.StatusNoContent)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		S3Error(w, http.StatusNotImplemented, "NotImplemented")
	case v == nil || v.mark && !q.Has("versionId"):
		S3Error(w, http.StatusNotFound, "NoSuchKey")
	case v.mark:
		S3Error(w, http.StatusMethodNotAllowed, "MethodNotAllowed")
	case q.Has("retention") && v.locked.IsZero():
		S3Error(w, http.StatusNotFound, "NoSuchObjectLockConfiguration")
	case q.Has("retention"):
		_ = xml.NewEncoder(w).Encode(&s3Retention{Mode: "COMPLIANCE", RetainUntilDate: v.locked}) // a client that is gone needs no answer
	default:
		if !v.locked.IsZero() && (v == a.find(key, "") || !a.Terse) {
			w.Header().Set("X-Amz-Object-Lock-Mode", "COMPLIANCE")
			w.Header().Set("X-Amz-Object-Lock-Retain-Until-Date", v.locked.UTC().Format(time.RFC3339))
		}
		s3Bytes(w, r, v.p)
	}
}

type s3Retention struct {
	XMLName         xml.Name `xml:"Retention"`
	Mode            string
	RetainUntilDate time.Time
}

// retain lengthens the lock of a version.
func (a *Archive) retain(w http.ResponseWriter, r *http.Request, v *archived) {
	var said s3Retention
	switch err := xml.NewDecoder(r.Body).Decode(&said); {
	case v == nil || v.mark:
		S3Error(w, http.StatusNotFound, "NoSuchKey")
	case err != nil || said.Mode != "COMPLIANCE" || a.Unlockable || !said.RetainUntilDate.After(a.now()):
		S3Error(w, http.StatusBadRequest, "InvalidRequest")
	case said.RetainUntilDate.Before(v.locked):
		S3Error(w, http.StatusForbidden, "AccessDenied")
	default:
		v.locked = said.RetainUntilDate
	}
}

func (a *Archive) put(w http.ResponseWriter, r *http.Request, key string) {
	p, err := io.ReadAll(r.Body)
	if sum := sha256.Sum256(p); err != nil || r.Header.Get("X-Amz-Content-Sha256") != hex.EncodeToString(sum[:]) {
		S3Error(w, http.StatusBadRequest, "XAmzContentSHA256Mismatch")
		return
	}
	if v := a.find(key, ""); v != nil && !v.mark && r.Header.Get("If-None-Match") == "*" {
		S3Error(w, http.StatusPreconditionFailed, "PreconditionFailed")
		return
	}
	v := archived{p: p}
	if mode := r.Header.Get("X-Amz-Object-Lock-Mode"); mode != "" {
		v.locked, err = time.Parse(time.RFC3339, r.Header.Get("X-Amz-Object-Lock-Retain-Until-Date"))
		checked := r.Header.Get("X-Amz-Checksum-Sha256") != "" || r.Header.Get("Content-Md5") != ""
		if err != nil || mode != "COMPLIANCE" || a.Unlockable || !checked || !v.locked.After(a.now()) {
			S3Error(w, http.StatusBadRequest, "InvalidRequest")
			return
		}
	}
	a.add(key, v)
}

// bucket answers what is asked of the whole bucket.
func (a *Archive) bucket(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case q.Has("location"):
		fmt.Fprint(w, "<LocationConstraint></LocationConstraint>")
	case q.Has("versioning"):
		fmt.Fprint(w, "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")
	case q.Has("object-lock") && a.Unlockable:
		S3Error(w, http.StatusNotFound, "ObjectLockConfigurationNotFoundError")
	case q.Has("object-lock"):
		fmt.Fprint(w, "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>")
	case q.Has("versions"):
		a.versions(w, q.Get("prefix"), q.Get("key-marker"), q.Get("version-id-marker"))
	default:
		after := max(q.Get("start-after"), q.Get("continuation-token"))
		var all []s3Key
		for _, key := range slices.Sorted(maps.Keys(a.keys)) {
			if v := a.find(key, ""); v != nil && !v.mark && strings.HasPrefix(key, q.Get("prefix")) && key > after {
				all = append(all, s3Key{key, int64(len(v.p)), v.time})
			}
		}
		s3List(w, all)
	}
}

type s3Versions struct {
	XMLName             xml.Name `xml:"ListVersionsResult"`
	IsTruncated         bool
	NextKeyMarker       string `xml:",omitempty"`
	NextVersionIdMarker string `xml:",omitempty"`
	All                 []s3Version
}

type s3Version struct {
	XMLName      xml.Name
	Key          string
	VersionId    string
	IsLatest     bool
	Size         int64
	LastModified time.Time
}

func (a *Archive) versions(w http.ResponseWriter, prefix, key, id string) {
	var l s3Versions
	skip := id != ""
	for _, k := range slices.Sorted(maps.Keys(a.keys)) {
		if !strings.HasPrefix(k, prefix) || k < key || k == key && !skip {
			continue
		}
		for i, v := range slices.Backward(a.keys[k]) {
			if k == key && skip {
				skip = v.id != id
				if skip || !a.Terse {
					continue
				}
			}
			kind := "Version"
			if v.mark {
				kind = "DeleteMarker"
			}
			if len(l.All) == s3Page {
				last := l.All[s3Page-1]
				l.IsTruncated, l.NextKeyMarker, l.NextVersionIdMarker = true, last.Key, last.VersionId
				_ = xml.NewEncoder(w).Encode(&l) // a client that is gone needs no answer
				return
			}
			l.All = append(l.All, s3Version{xml.Name{Local: kind}, k, v.id, i == len(a.keys[k])-1, int64(len(v.p)), v.time})
		}
	}
	_ = xml.NewEncoder(w).Encode(&l) // a client that is gone needs no answer
}

// Everything returns how many versions there are, and how many of them are locked.
func (a *Archive) Everything() (versions, locked int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, vs := range a.keys {
		for _, v := range vs {
			versions++
			if v.locked.After(a.now()) {
				locked++
			}
		}
	}
	return versions, locked
}
