// Package repo is a repository: config, keys, writers, records, the writer's
// protocol, and the check for damage. It joins the floors below: backend,
// chunkstore and index. It never reads or writes a live file tree, and it never
// removes a pack.
//
// # Layout
//
// All objects but packs are in the envelope of package seal, which gives their
// kind, format version, sealing, signature and closing hash. The bodies named
// here are JSON, but for segments; the structs that are named hold the fields.
// Every body has a version v; unknown fields are kept where an object is
// rewritten, and nothing is rewritten but config and key rings.
//
//	config/<n>       Config       list key, owner     highest n wins
//	keys/<id>        keyFile      clear               the ring, wrapped by one password
//	writers/<id>-<n> Writer       list key, owner     who else may write; highest n
//	packs/<xx>/<id>  package pack                     frames of chunks
//	index/<id>       package index, list key          trailers of packs, once more
//	intents/<id>     Intent       list key            a writer at work
//	intents/<id>.<n> Intent       list key            its heartbeats
//	snapshots/<id>   Snapshot     epoch key           the record; or a
//	                 Tombstone    list key            in its place
//	marks/<id>-<n>   Mark         epoch key           later words about a snapshot
//	condemned/<id>   Condemned    list key            packs that prune will remove
//	condemned/<id>.<n>                                intents that it waits for
//	forgotten/<id>   Forgotten    list key            snapshots that are gone
//	ledger/<id>      Ledger       list key            what was verified
//	parity/<pack>    reserved
//
// IDs are 16 random bytes in hexadecimal, used once. Nothing but intents is ever
// removed by a writer.
//
// # The writer's protocol
//
// Writers and pruners need no lock and trust no clock. Two ideas carry it:
// committing, and declaring a writer dead, race by create-if-absent for one
// name, snapshots/<id>; and a condemned pack never comes back, what is still
// needed is copied out of it first.
//
//	(1) Put intents/<id>, before any decision to deduplicate.
//	(2) List condemned/.
//	(3) Then list packs/. Usable is what (3) has and (2) does not name. The
//	    index is a hint of any age.
//	(4) Each chunk: lean on a usable pack, or put it into a new one; a pack is
//	    durable before a segment names it.
//	(5) Create-if-absent snapshots/<id>. On conflict read it: one's own record
//	    is success, a tombstone is ErrDead.
//	(6) Only after an acknowledged commit remove the intent.
//
// Heartbeats say only when a silent writer may be given up. After ErrDead a new
// run takes a new ID, and adopts the packs that are still there.
//
// Invariant: in every state the chunks of every live record lie in a pack that
// exists and that a segment lists.
//
// A reader tries all known places of a chunk, reads new segments on a miss, and
// takes tombstones and forgotten records for absent.
//
// A crash leaves at most: packs without a segment (the next writer adopts them),
// an intent (until somebody resolves it), and temporary files of the backend.
//
// # What protects what
//
// Whoever has the storage but no key sees the number and sizes of objects, when
// they were written, and which writer signed what; no content, name, size of a
// file, or chunk ID. Chunk IDs are keyed, chunk boundaries depend on a secret,
// and chunks are compressed and sealed in groups, so that lengths tell little.
// Changing or exchanging any byte is noticed: by a hash without keys, by
// signature and AEAD with them. Removing whole objects, or putting back old
// ones, is noticed only as far as something still refers to what is gone: a
// removed record is not missed. An open machine that holds the ring, or a
// password that opens it, can do everything.
//
// With `init --no-password` the ring lies beside the data, and only rot is
// guarded against.
package repo
