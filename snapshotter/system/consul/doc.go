// Package consul captures a datacenter of Consul through its HTTP API, shows it as files,
// and restores it, as a whole or key by key.
//
// # What is in a snapshot
//
// What "consul snapshot save" has: keys and values, the catalog (nodes, services, checks,
// coordinates), sessions, ACL tokens with their secrets, policies, roles, binding rules
// and auth methods, prepared queries, config entries and intentions, the certificate
// authority with its private keys, peerings and their secrets, and of Enterprise whatever
// its servers write. It is stored taken apart, as
//
//	meta.json      of the archive: ID, index, term, servers
//	state.bin      all records, cut at their ends
//	SHA256SUMS     of the two
//	archive.json   {"version":1,"regenerates":true,"size":N,"sha256":HEX,"mode":N,"mtimes":[N,N,N]}
//	inspect.txt    what "consul snapshot inspect -kvdetails" prints
//	consul.snap    the archive itself, only where it cannot be written again bit for bit
//
// Records of 384 bytes or more are chunks of their own, shorter ones lie together; a cut
// depends on what a record is called and how long it is. Of 20,000 keys of 300 random
// bytes, 1 % rewritten cost 3.5 % new bytes, and nothing rewritten 0.2 %; archives as
// Consul writes them cost 99 %. Each key rewritten costs about 1 KiB beside its record,
// which is more of less where values are short: 9 % with 40 bytes, 1.9 % with 1,000.
//
// "cutbank import consul FILE.snap..." makes the same of archives that "consul snapshot
// save" has written; they have the times that they tell, unless those are to come. The
// fact "sha256" of a snapshot is that of its archive.
//
// A light snapshot (--mode light --data PREFIX) has everything but the values of keys
// that begin with no PREFIX. A dataless one (--mode dataless) has no values, no secrets,
// and of all other records the texts of those fields alone that a list in this package
// names: names, IDs, addresses, policies; no tags, which have passwords of proxies. Both
// have records.bin in the place of state.bin: the same format, in which extension 67 of
// MessagePack with eight bytes, big-endian, says how long a value was that is left out,
// and whose header has "Reduced": 1 beside "LastIndex". Neither can restore a whole
// datacenter.
//
// # What is seen of it
//
// View makes these files:
//
//	kv/...                 each key; its value is the contents
//	services/NAME/NODE/ID.json, nodes/NODE/{node,coordinate}.json, nodes/NODE/checks/ID.json
//	sessions/ID.json, queries/NAME.json, config/KIND/NAME.json
//	acl/{tokens,policies,roles,binding-rules,auth-methods}/NAME.json
//	other/TYPE/NAME.json   all else; .bin where it is no MessagePack, or of more than 2 MiB
//	peers/PEER/..., namespaces/NAME/..., partitions/NAME/...
//	consul.snap            the archive, written again as it is read
//
// beside meta.json, SHA256SUMS, inspect.txt and state.bin. Of records with the same name
// the second is NAME%-2. Secrets are masked in .json and .bin files unless --secrets is
// said: by the names of their fields, passwords in URLs, and all of what cannot be read;
// state.bin, consul.snap and the values of keys have them in any case. JSON has sorted
// keys, so that records which differ by the order of their maps alone, as those of the
// catalog do from snapshot to snapshot, are equal for cutbank diff. Records have no
// times in Consul, and in the view that of 1970.
//
// A key's extended attributes are user.consul.flags, create_index, modify_index,
// lock_index, session where it is locked, and key where the path is not the key. Keys are
// cut at slashes; what can be no name is escaped, in a way that can be undone:
//
//   - "%", NUL, and each byte of a part that is "." or "..", become "%" and two digits;
//   - an empty part is "%": a key "a/" is the file a/%;
//   - a part longer than a name goes on in a directory below, whose name ends with "%+";
//   - of "a" and "a/b", the first is the file a%.
//
// The view reads the state once and keeps about half a KiB for each record in memory; of
// more than four million records none is made.
//
// # What consistency it has
//
// The leader makes the snapshot, after it has made sure that it leads: what was written
// before the command started is in it, and it is the state at one index, which the record
// tells. Where a leader goes away within, the next one is asked, for up to half a minute.
// Without a leader there is no snapshot, unless -stale lets the server that is asked answer
// by itself; the record has how long ago it last heard of a leader, and more than -max-stale
// is refused. The archive's sums and sizes are checked, and that nothing follows it; a
// stream that ends early is asked for again, and never kept.
//
// # Restoring in production
//
// Keys, into the running datacenter:
//
//  1. "cutbank ls prod/latest:kv/app", "cutbank diff prod/LABEL prod/latest": what there is.
//  2. "cutbank restore prod/latest:kv/app --system consul --dry-run": which keys would be
//     added, and which have other values now: it is refused (exit code 9) where there are any.
//  3. The same without --dry-run; keys with other values are replaced with --force only.
//     Keys go in transactions of up to 128, each all or nothing, with their flags; a key
//     that somebody writes meanwhile ends it, and running it again goes on. Keys that are
//     not in the snapshot, locks and sessions stay as they are. The token needs policy =
//     "write" for the keys. Another cluster or release is refused as with everything, as
//     far as the token lets it be known. Keys whose names are no UTF-8, and values of more
//     than about 384 KiB, go by themselves; of those, names that no URL path has unchanged
//     (empty parts, "..", what cannot be printed) are told, and come with everything only.
//
// Everything, into a new datacenter of the same name and release:
//
//  1. Start the servers, empty, and wait for a leader ("consul operator raft list-peers").
//     With access control on, bootstrap it, or give the servers an initial management
//     token: a restore needs acl = "write".
//  2. "cutbank restore prod/latest --system consul --dry-run": what is in the snapshot, and
//     what of the cluster it would replace. A cluster that holds anything is refused
//     without --force; another release without --allow-release-change; another cluster,
//     by its datacenter and the ID of its certificate authority, without
//     --allow-other-cluster.
//  3. The same without --dry-run. All of the state is replaced; the servers stay those that
//     they are. The numbers of records are compared afterwards.
//  4. ACL tokens are those of the snapshot now: set the agents' tokens ("consul acl
//     set-agent-token"), and stop using those of the new cluster.
//  5. Agents that say "Node name NAME is reserved" have a new ID: "consul leave" and start
//     them again, one at a time. Deregister what is gone for good.
//
// Without cutbank's restore: "cutbank cat prod/latest:consul.snap > x.snap", and then
// "consul snapshot restore x.snap".
//
// # What is not covered
//
// Configuration of agents, their data directories, the gossip key, TLS files, the members
// of Raft. Other datacenters, which need a snapshot each (-datacenter). Vault or whatever
// else keeps the keys of the certificate authority. A dump of Enterprise's namespaces was
// never tried.
package consul
