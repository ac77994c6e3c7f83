// Package repo is a repository: config, keys, writers, records, the protocols of
// writing, forgetting and pruning, the check for damage, and its repair. It joins
// the floors below: backend, chunkstore and index. It never reads or writes a
// live file tree, and only prune removes a pack.
//
// # Layout
//
// All objects but packs are in the envelope of package seal, which gives their
// kind, format version, sealing, signature and closing hash. The bodies named
// here are JSON, but for segments; the structs that are named hold the fields.
// Every body has a version v; unknown fields are kept where an object is
// rewritten, and nothing is rewritten but config, under its next number, and
// ledgers, which are merged.
//
//	config/<n>       Config       list key, owner     highest n wins
//	keys/<id>        keyFile      clear, owner        the ring, wrapped by one password
//	keys/<id>.<n>    keyGrant     clear, owner        key epochs that it was given later
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
//	parity/<pack>    package parity   clear            what heals a damaged pack
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
// # Across a network
//
// A request that was given up may be done later, one that succeeded once more:
// minutes after, when who sent it has repeated it and gone on, or is dead. Such a
// Put of a name that is taken does nothing, and names are used once; so it counts
// only where something was removed, and backend.PutAgain tells of each kind what
// it says then. Two must not come back, and keep their place until something is
// there that was put so much later, by the backend's clock, that nothing of theirs
// is under way any more (backend.Late; in a local folder never anything is):
//
//   - The record of a snapshot that is forgotten while it is young is hidden,
//     though its writer has signed off. Put anew it would name packs that are gone.
//   - A condemned record stays when its packs are removed, and the next prune ends
//     it, after it has removed those that came back. Whether it may be ended is
//     decided by what was listed before the packs are removed, not after.
//
// An error of a Put says what became of the last attempt only (backend.ErrUnclear):
// a writer takes its commit for failed, and signs off, only if none of them can
// have left anything under way.
//
// # Without create-if-absent
//
// Where the config says no_fencing, two that put one name at once both succeed, and
// the later one replaces the other's, as does a Put that is late:
//
//	snapshots/<id>        no pruner takes that name. Unlock does: it may replace
//	                      the record of a writer that commits just then, or be
//	                      replaced by it; so it is for writers that are gone for
//	                      as long as a request may be under way
//	config/<n>            of two changes at once the later one stays, and both are
//	                      told that they succeeded
//	keys/<id>.<n>         two rotations at once may give the keys one epoch and
//	                      publish another's public half: what is sealed for it from
//	                      then on opens to nobody. Keys and settings are to be
//	                      changed from one place at a time
//	marks, writers        get numbers that differ at random, so that both words stay
//	condemned/<c>.<n>     either list of writers is good, as both were made after
//	                      the record was put
//	forgotten, parity     both say the same
//	all others            have random names
//
// # Forgetting and pruning
//
// Forgetting lists snapshots, then intents. Where the intent of a record's writer
// is gone the record is removed, if it is not so young that a Put of it may be
// late; where it is there the record is hidden by forgotten/<id>, for its writer
// may be putting it again, and must find its name taken. Prune removes what is
// hidden once the intent is gone, and nothing can come.
//
// Any number of pruners may run, and any may take up what another has begun:
//
//	(1) Put condemned/<c>, which names packs. Any will do: what is needed of
//	    them is found out later.
//	(2) Then list intents/: the writers to wait for, put as condemned/<c>.<n>.
//	(3) Resolve each: its intent is gone; or snapshots/<id> is there; or it has
//	    been silent for longer than the grace, by the backend's clock: then put
//	    a tombstone there, create-if-absent, and look again. An intent is
//	    removed only after its tombstone is there, and tombstones stay. The
//	    intent of a committed record stays too. Where create-if-absent is not
//	    fenced (no_fencing in the config) nobody is declared dead, but by a
//	    person who knows (Unlock).
//	(4) Then list snapshots/, and mark what live ones need.
//	(5) List condemned/, then packs/. A pack holds a chunk if (5) has it, nobody
//	    condemns it, a segment lists it, and it is to be trusted.
//	(6) Copy each needed chunk of the condemned packs that no pack holds to a
//	    new pack, then put its segment. Where the source is gone go back to (4);
//	    what is found nowhere keeps its pack.
//	(7) Remove the packs, and publish that they are dropped.
//	(8) Then remove condemned/<c>.<n>, then condemned/<c>; where Puts may be late
//	    the next run does.
//
// A condemned pack never comes back, under its name or otherwise. Where listings
// lag behind, as the backend or listing_lag in the config says, that long is waited
// before (2), (4), (5) and (8), as a writer waits before its (2), and before what a
// reader does not find counts as missing. A condemned/<c>.<n> without condemned/<c>
// says nothing: a listing may have missed the record, and another pruner be at it.
// A record that cannot be read, or a page, stops all this before anything is
// removed: nobody knows what it needs. Which packs are worth condemning is decided
// beforehand (pruneplan.go), by marks that may be old: packs of which nothing is
// needed, with a frame less than half needed, damaged ones, and small ones where
// there are many.
//
// The orders and decisions are in protocol.go. TestModel drives them, as they are,
// through all interleavings of two writers, two pruners, a forget and mergers of
// segments, each of which may be held up for ever at any step, with answers lost,
// Puts and Removes that are done late or once more, and clocks of any sort. TestMutations shows of each step and each order that
// without it data is lost, or something unneeded stays for ever.
//
// # Locks
//
// Where the config says so (lock), objects are locked when they are stored, for
// that long: nobody, with whatever rights, removes or changes them before. Others
// can be stored over them, and marks of removal, which hide them; they are there all
// the same, as versions. Locked are config, keys, writers, packs, index, snapshots,
// marks and parity. Intents, condemned and forgotten records and ledgers are not
// (lock.go says why). Removing means removing all versions: what our programs
// removed is gone for good, and what is hidden was hidden by somebody else.
//
// Locks of what live snapshots need are lengthened when less than half of the time
// is left: by every prune and by KeepLocks, which look at everything, and by a
// session for the packs that it leans on, before it puts its record. So what is
// needed is locked for half of the time at least, if one of the two runs as often.
// Condemned packs of which all that is needed was copied, forgotten records and
// removed keys are not locked any longer, and small segments neither: prune
// merges those whose locks have passed into one that is locked anew, and the packs
// tell what they told. Whether the time of storing tells that a lock lasts is asked
// first, which costs nothing; then what this machine remembers of the store's
// answers; then the store.
//
// A lock that has not passed is no error to who removes: a condemned pack stays
// condemned, its record stays until all its packs are gone, and each prune tries
// again. A forgotten record is hidden until then. A removed key opens until then what
// it has opened. Of what else is to go, what is locked is left to the next prune.
//
// All names are taken once, by create-if-absent. So the oldest version under a name
// is the one that took it, or junk that somebody had put there before and removed
// himself: some names are known beforehand, as that of the record of a writer at
// work. So the oldest that is signed by who may sign it, and otherwise the oldest that
// ends with its own hash, is what is read (Oldest), locked on (KeepLocks), and proven
// like any other by who reads it. RepairVersions makes it the newest again,
// by removing what lies over it. Only what is read in this way, or found so by
// KeepLocks, is not fooled by versions; all else sees the newest. But prune decides
// nothing while somebody has hidden a record, forget applies no rules to a snapshot
// of which a mark is hidden, and the time of a pack is that of its oldest version, or
// who stores it once more would make it seem locked. Where something is missed the
// packs that are hidden are locked on; where nobody knows what is needed all are,
// also condemned ones, of which it may not be copied yet. Small segments whose locks
// have passed may be gone: who reads the oldest versions, and prune where there are
// locks, reads packs that no segment lists.
//
// Times are of the machine that stores: a store takes no request of one whose clock
// is wrong by more than minutes.
//
// # Parity
//
// Where the config asks for it, each pack is followed by parity/<pack>, put by
// who put the pack; AddParity makes what is missing. A damaged pack is rebuilt by
// it in memory (Heal), proven, and what it holds is stored anew by a session that
// leans on no damaged pack. The pack itself stays as it is, and condemned it goes
// like any other: the ledger says that it is damaged, and that nothing of it is
// lost.
//
// # Keys and rotation
//
// Packs and records are sealed for a key epoch, a key pair: with the public half
// one writes, with the private half one reads. Rotating adds an epoch:
//
//	(1) Each key is given the new private half: put keys/<id>.<n>, sealed for
//	    the public key that belongs to its password. Nobody is asked for it.
//	(2) Create-if-absent config/<m>, which publishes the public half. Only now
//	    does anybody seal for it, and it is the newest in the newest config that
//	    is sealed for, whatever a ring holds.
//	(3) Give it to keys that were added between (1) and (2); remove those that
//	    are dropped.
//
// A crash before (2) leaves grants of an epoch that does not exist; a repeated
// rotation takes the next number. Of two rotations at once one loses the race for
// config/<m> and says so. A process that is running looks for a new epoch when it
// begins a session, and when it meets one that it does not know; it keeps the key
// pair that its password came to, not the password. Each config counts all that
// the ones before it counted, so that keys that were removed stay so, if somebody
// puts their files back.
//
// Everything that is given, and every public key that something is given to, is
// signed by the owner; the owner's public key comes out of the ring, which the
// password has proven. So neither a key that somebody plants in the storage is
// given anything, nor is an epoch taken that somebody else made up. Who can write
// to the storage can make a key be left out, by damaging or removing its file or
// grants, or put back all of an older state, config included: then new data is
// sealed for an older epoch.
//
// A rotation does not change the keys that name chunks and that seal what lists
// them, nor the owner's signing key. Who has an old ring opens what is sealed for
// its epochs: contents until they are stored anew (RewriteEpochs), records until
// they are forgotten.
//
// # Copies
//
// A copy of a snapshot in another repository has an ID of its own and is signed by
// the copier. Its record says all that the original's says, and holds that one
// (copied), with its repository and ID (origin), as it was first made: a copy of a
// copy names the same original. Two snapshots of one origin are one snapshot, which
// no copier makes twice in a repository.
//
// Nothing else ties the two: each repository forgets, prunes and repairs its own.
// Packs are never copied under their names, not even between repositories with the
// same secrets: a name is used once (PackCopier).
//
// # The ledger
//
// Verifying a pack leaves an entry: when, how deep (hash: the closing hash; then
// frames: every frame opens; then chunks: every chunk is what its ID says), and
// with what result. Entries are collected in ledgers, which only the owner's key
// signs. Of a pack, damage counts until somebody looked later and at least as
// deep and found it whole; otherwise the deepest result since the last damage.
// The times are of the verifier's clock, but not later than that of the backend
// when the ledger was put; one from the future of who reads it makes no pack
// count as proven. Many ledgers are merged into one: read ledgers, then list
// packs, put what still counts, then remove those that were read. What a newer
// program adds to an entry is lost by that; what it says with known fields is not.
//
// # Writers and credentials
//
// Besides the owner may write who is registered in writers/, with globs of
// snapshot names and an end. A write-only credential (see credentialType) holds a
// ring that names chunks, opens what lists them, seals for the epochs' public
// keys, and signs as one writer. It has no private key: it opens no frame, no
// record and no mark, not those that it wrote itself either. What such a node
// must know of its last snapshot it keeps on its own machine (see LocalPages).
//
// A record counts if its writer may use the name, its time is not after the
// writer's end, and, once the writer is revoked, if it is one of those that the
// revocation lists by ID and hash. Others are whole and refused (ErrRefused): no
// list shows them, and they hold no chunk. Where a newer word about the writer
// cannot be read, nothing of the writer's is refused, and the records in question
// are errors, which keep prune from deciding until that object is removed.
// Tombstones count from the owner only, as do marks, forgotten and condemned
// records, ledgers and what segments drop.
//
// A pack's trailer proves who wrote it, not that the frames hold what it lists. A
// writer leans only on packs of the owner, its own, those of trusted writers, and
// those that the owner has read whole (ledger) and found listed as they are. Where
// listings of one pack differ, its own trailer decides (package index). A reader
// takes no place of a chunk on trust: what lies there is hashed, and if it is not
// the chunk the next place is tried. In the same way a snapshot's word about others
// counts from the owner, oneself and trusted writers only: that it is a copy of
// another, and that a file has not changed since.
//
// In append-only mode the keys in the repository hold rings without the owner's
// seed: they read everything, and add as a registered, trusted writer. The
// owner's ring lies in a credential elsewhere.
//
// # Threat model
//
// The storage is not trusted with anything but keeping what it was given. What is
// assumed: machines that hold a ring are not broken into while they do; SHA-2,
// BLAKE3, AES-256-GCM, Ed25519, argon2id, and one of ML-KEM-768 and X25519 are
// sound; the system's randomness is.
//
// A thief of the storage (a stolen disk, a curious provider) sees the number,
// sizes and times of objects, the lengths of stored frames, which writer signed
// what, which packs came with which snapshot, labels of keys, and so how much is
// backed up, when, and how much changes. It learns no content, name, size of a
// file, or chunk ID, and no single object confirms a guess: IDs are keyed,
// boundaries depend on a secret, chunks are compressed and sealed in groups. But
// lengths add up: that some large files which it knows were stored at once is
// likely from the sum. It can try passwords at leisure: argon2id makes each try
// cost 64 MiB and a tenth of a second, and only a good password withstands that.
// With `init --no-password` the ring lies beside the data, and only rot is guarded
// against.
//
// Who can write to the storage can destroy: remove or overwrite anything, all of
// it. Any changed byte is noticed, by a hash without keys and by signature and
// AEAD with them; but a key's file may lose the owner's signature, as those of
// older programs have none, and is then given nothing more, which `key rotate`
// tells. A removed record is not missed, nor is a repository that was put back as
// a whole to an older state: that brings back a password that was removed, and the
// word that a revoked writer may write. A key alone that is put back is given
// nothing. Against all that there are copies elsewhere, object locks, and storage
// that does not let nodes delete. With locks (init --lock) who can write destroys
// nothing that is younger than the lock or needed by a snapshot, as long as prune or
// lock run: he can hide it until it is put back, bring back what was forgotten and is
// not gone yet, and make storing cost, by objects and locks of his own. Who holds the
// owner's key too can forget snapshots, whose packs then go when their locks have
// passed: there is that long to notice.
//
// Junk under our names hides nothing that is there. It is passed over, or stops a
// command, which names it: verify names all, and it may be removed from the
// storage. In the place of a record `forget --damaged` removes it, of a condemned
// one `prune --discard-damaged`. Junk in the place of a mark keeps the rules of
// forget from that snapshot, in the place of parity keeps its pack from having any
// (repair renews it), and behind a writer's last word keeps prune from deciding
// about that writer. A heartbeat put again and again keeps prune waiting: a shorter
// --grace does not wait for it.
//
// Where no password is configured, a program opens what needs none, and asks for
// one only otherwise. So a whole repository of somebody else's, with an open key,
// can stand in the place of one whose password is typed in: that it was not asked
// for is all that shows it. A password from a file, the environment or a command
// opens no such key.
//
// Who listens on the network between a node and the storage is a thief of the
// storage who saw only what passed; who can change what passes is one who can
// write. Nothing relies on the transport.
//
// A thief of a write-only node (its credential) can add: snapshots under its
// names until it is revoked, and any amount of junk, until the storage is full
// (prune frees the packs among it). It can decrypt no content, name or record, also not those
// that the node stored, and what it kept locally opens with its own seed: that
// tells names, sizes and times of the last snapshots' files, which stood on that
// machine anyway. It sees the config, the splitter's secret included, chunk IDs,
// lengths, and which chunks came together in which pack. It can confirm a guess:
// whether certain bytes, a whole chunk of them, are stored by anybody in this
// repository. Where even that is too much, nodes need repositories of their own.
// As it signs as the node, it can spoil what the node itself stores later, by
// packs that lie: verify names them, revoking the writer ends that. It cannot
// spoil what others store, unless it is trusted: then as far as others leaned on
// its packs. Its snapshots may be the latest of names that others use too, and
// refer to pages and chunks that are nowhere: prune then names the snapshot and
// removes nothing until it is forgotten, or tells that chunks are missing. Where
// forget keeps a number of the last ones, it pushes out older ones of that node;
// where it keeps one for each day or hour, it does so only as time goes by
// (Policy). It can put intents and take names of snapshots that writers have
// announced: that delays prune, and makes a snapshot fail loudly and be repeated.
// It removes nothing that the storage does not let it remove.
//
// A thief of a full node, or of a password and the storage, reads everything,
// past and to come, and without append-only mode does all that the owner does.
// In append-only mode it adds lies that others lean on (verify names them), and
// it forgets, prunes and marks nothing. Who opens the repository with the same
// password it can lead to a ring of its own making, with another owner: what they
// store then is signed by strangers to everybody else, which verify with the
// owner's credential tells. So each node is better given a password of its own, or
// a write-only credential. Removing its password does not take back
// what it has read, nor the secrets in the ring: `key rotate` seals new data for
// a key that it does not have, but chunk IDs and lists stay what they are.
//
// A password alone, without the storage, opens nothing.
//
// The owner's seed, stolen, is the repository: there is no key above it, and it
// cannot be replaced. A new repository is then needed.
//
// Not protected: the times and amounts of traffic; sizes, to the storage; that
// some chunks are shared, to every node; against denial of service by who may
// write; and the clock of a writer, which may lie: what is dated ahead counts
// from when the storage saw it, and an expired credential can date back until it
// is revoked.
//
// # Where things are
//
//	repo, init, config, reconfig, resolve   opening; what all agree on; names
//	objects                                 the bodies of objects
//	protocol, session, view, trust          writing, and what all protocols share
//	forget, marks, retention                what goes, and what was said of it
//	prune, pruneplan, pruneresolve,         prune: choosing, waiting, copying;
//	prunecopy, live, full                   what is needed; a full disk
//	check*, ledger, coverage, losses        verification, and its memory
//	repair*, salvage, rescue, lose*         what brings back, or does without
//	heal, parity                            parity
//	lock, keeplocks, lockhints, versions    objects that nobody can remove
//	keys, keyset, grants, rotate            passwords and key epochs
//	writers, owners, credential,            who else may write; who may not
//	appendonly, localpages*                 remove; what such a node remembers
//	copy, copypacks                         copies between repositories
package repo
