// Package etcd captures etcd 3 through its own tools, etcdctl and etcdutl.
//
// # What is in a snapshot
//
// snapshot.db is what "etcdctl snapshot save" writes: the database of one member, with
// the SHA-256 that the server puts behind it, cut at its pages so that pages which two
// snapshots share are stored once. It has all keys with their history back to the last
// compaction, leases, users, roles and their password hashes. members.json is what
// "member list" printed. "cutbank cat NAME/latest:snapshot.db" gives the file back as
// etcdctl wrote it. Of a dataless snapshot there are members.json and keys.txt: names
// of keys, and the revisions that made and changed them. There is no light mode.
//
// The record has the server's version, the cluster's ID, the revision, the number of
// keys, and the hash that "snapshot status" computes.
//
// # What consistency it has
//
// A snapshot is the state of one member at one revision. Of the members that answer
// the one is asked that has applied most, never a learner; where there is no leader
// that is said, since newer writes may be elsewhere. The file's hash is checked, and
// that its revision is not behind what the member had told.
//
// # Restoring in production
//
//  1. Stop the API servers and whatever else writes, then etcd on all members, and move
//     the old data directories away.
//  2. On each member: "cutbank restore NAME/latest --system etcd --dry-run -- --data-dir
//     DIR --name NAME --initial-cluster ... --initial-advertise-peer-urls ..." with what
//     the member's unit has for these options, and then the same without --dry-run. All
//     members take the same snapshot. As root the files are given to who has DIR if it
//     is there, or --owner.
//  3. Start etcd on all members. It is a new cluster, with a new ID, so that no old
//     member can join it by mistake.
//  4. "etcdctl endpoint hashkv --cluster" has one hash; "endpoint status" has at least
//     the revision of the snapshot. For watchers that must not see revisions twice, as
//     those of Kubernetes, use etcdutl 3.6 with --bump-revision and --mark-compacted.
//
// # What is not covered
//
// Certificates, the members' configuration, and the v2 store. A part of the keys alone
// is not restored: serve the snapshot from a second etcd, and copy from there.
package etcd
