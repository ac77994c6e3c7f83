// Package etcd captures etcd 3 through its own tools, etcdctl and etcdutl.
//
// # What is in a snapshot
//
// snapshot.db is what "etcdctl snapshot save" writes: the database of one member, with
// the SHA-256 that the server puts behind it, cut at its pages so that pages which two
// snapshots share are stored once. It has all keys with their history back to the last
// compaction, leases, users, roles and their password hashes. members.json is what
// "member list" printed. "cutbank cat NAME/latest:snapshot.db" gives the file back as
// etcdctl wrote it.
//
// Of a light and of a dataless snapshot there are members.json and keys.txt: names of all
// keys, and the revisions that made and changed them. A light one has keys.jsonl, too, with
// a line for each key that begins with what --data says: key and value in base64, the
// revisions, and the lease.
//
// The record has the server's version, the cluster's ID, the revision, the number of
// keys, the hash that "snapshot status" computes, and what --data said.
//
// # What consistency it has
//
// A snapshot is the state of one member at one revision. Of the members that answer
// the one is asked that has applied most, never a learner; where there is no leader
// that is said, since newer writes may be elsewhere. The file's hash is checked, and
// that its revision is not behind what the member had told. Light and dataless snapshots
// are of one revision, too, however long they take; if that is compacted away meanwhile
// they fail.
//
// # Restoring in production
//
//  1. Stop the API servers and whatever else writes, then etcd on all members, and move
//     the old data directories away.
//  2. On each member: "cutbank restore NAME/latest --system etcd --dry-run -- --data-dir
//     DIR --name NAME --initial-cluster ... --initial-advertise-peer-urls ..." with what
//     the member's unit has for these options, and then the same without --dry-run. All
//     members take the same snapshot. As root the files are given to who has DIR if it
//     is there, or --owner. A --wal-dir must not lie in DIR: name one beside it, and
//     move that to its place before etcd is started.
//  3. Start etcd on all members. It is a new cluster, with a new ID, so that no old
//     member can join it by mistake.
//  4. "etcdctl endpoint hashkv --cluster" has one hash; "endpoint status" has at least
//     the revision of the snapshot. For watchers that must not see revisions twice, as
//     those of Kubernetes, use etcdutl 3.6 with --bump-revision and --mark-compacted.
//
// With --force old directories are replaced, but not those in which an etcd runs.
//
// Some keys, into a running cluster, from a full or a light snapshot:
//
//  1. "cutbank restore NAME/latest --system etcd --dry-run --force -- --prefix /app/" says
//     which keys would be made, and which changed. A light one without --prefix is all
//     that it has.
//  2. The same without --dry-run. It refuses if keys have other values now, unless there
//     is --force, and if somebody changes one meanwhile: each transaction has up to 64
//     keys, and is done only if these are as they were when it looked. Keys that have
//     their value already are left alone; so it can be run again.
//  3. Keys that the snapshot does not have stay; remove them with etcdctl del. Keys with a
//     lease are not put back, and are counted: who held the lease is gone. Revisions and
//     versions are new ones. For what keeps a copy of its keys, as Kubernetes does, this
//     is a change like any other.
//
// # What is not covered
//
// Certificates, the members' configuration, and the v2 store.
package etcd
