// Package featurebase captures FeatureBase 3 clusters, which were called Pilosa, over
// their HTTP API, and restores them to clusters of any size.
//
// # What is in a snapshot
//
// The layout is that of "featurebase backup", so that each tool restores what the
// other made:
//
//	schema                               indexes and fields, JSON
//	idalloc                              the allocation of IDs, BoltDB
//	indexes/INDEX/shards/NNNN            the records of a shard, RBF
//	indexes/INDEX/dataframe/NNNN         its dataframe, where dataframes are in use
//	indexes/INDEX/translate/NNNN         keys of columns, BoltDB, 256 partitions
//	indexes/INDEX/fields/FIELD/translate keys of rows, BoltDB
//
// In the schema each timestamp field has a "base", its epoch as a number, for that is
// what a node reads: restored from what a node writes itself, all of its values would
// be off by the time from 1970 to the epoch.
//
// Databases are cut at every 8 KiB, the pages of RBF, so that a shard nothing was
// written to, and the empty pages that most of the keys' files are, cost nothing in
// the next snapshot. One that 1 % of random updates went to shares little: they
// touch nearly all of its pages.
//
// --mode light has the schema and allocation of all indexes, and the data and keys of
// those that --data names; fields share the files of their index, and cannot be chosen.
// --mode dataless has the schema, and the shards as files whose size is right and whose
// contents are left out: no keys and no values. Names of indexes and fields, and
// descriptions, are in it. --index restricts any of them to one index.
//
// The record has the version, the cluster's name with the ID of a node, the number and
// addresses of the nodes, how many replicas, and how many indexes and shards.
//
// # What consistency it has
//
// A shard's file is one transaction. The whole is not one moment; it is taken in the
// order that keeps what refers to other things whole: schema, IDs that were given to
// ingesters, records, then keys. So no record has a key that is missing. Keys without
// records, and parts of a record that is spread over shards, are possible while
// ingesters write. An ingester that continues from where the allocation stood gives
// the same records the same IDs again. Indexes that are made meanwhile are captured,
// too; one that is dropped, or whose field is, ends the capture.
//
// Nothing may be deleted meanwhile. Deletions that run when the capture begins or ends
// are warned of where the token lets queries be seen (admin); others are not noticed.
//
// All nodes are asked which shards there are: one that was away when a shard was made does
// not know of it, and does not know that. Each shard is asked of the nodes that own it,
// for one that does not answers with a valid empty database. Nodes are reached at the
// addresses that they advertise, and say there who they are. A node that fails is followed by the next replica. Files must be
// as long as their first page says; of BoltDB files every page is walked, because a node
// that fails while it sends one ends the answer as if it were whole. A listed shard that
// is empty on all of its nodes is kept, and warned of; one that is empty while other
// owners do not answer is refused.
//
// With authentication the token of an admin is needed for all of a cluster: a node leaves
// out of the schema what a token may not read, without saying so. A snapshot with any
// other token is warned of, and its record says so.
//
// While nodes are down (DEGRADED) keys cannot be read at all: what has keys is refused,
// and indexes without are taken from the replicas, by --index also when the one node
// is down that has the allocation of IDs, which is warned of. A cluster that has lost
// most of its nodes may call itself NORMAL and give no schema: nothing is kept then.
// Storage that is not RBF is refused, where the token lets it be seen.
//
// # Restoring in production
//
//  1. Start the new cluster, empty, with any number of nodes and replicas, of the same
//     version, and wait for NORMAL in /status. Keep ingesters and users away from it.
//  2. "cutbank restore NAME/latest --system featurebase --allow-other-cluster --dry-run
//     -- --host NODE:10101" reads and checks all of the snapshot and changes nothing.
//     With authentication PILOSA_AUTH_TOKEN has the token of an admin.
//  3. The same without --dry-run; --concurrency 4 and more is faster. Each file goes to
//     every node that owns it in the new cluster, and is read back from it. Before that
//     the fields must have become what they were. Of what is read back, records are compared
//     byte for byte, keys by all keys and values. (Keys of columns are read back from
//     the first of their nodes, which alone gives them.) At last every node must know
//     of every shard. What fails is tried again for --retry-period; what did not
//     come over is named, and the exit code is not 0. Run it again with --force then.
//  4. "featurebase chksum --host NODE:10101" of both clusters is the same, if nothing
//     was written to the old one since. Creation times are not restored.
//  5. Let ingesters continue.
//
// Indexes that are there are refused; --force deletes them first and restores them. Those
// of which a light or dataless snapshot has the schema only are left as they are.
// "NAME/latest:indexes/INDEX" restores one index beside others, without the
// allocation of IDs, which is one for all; an index with the keys of another needs that
// to be there. Without a cluster: "cutbank restore NAME/latest DIR", then "featurebase
// restore -s DIR", which loses bounds of 0, and fails where a cluster of several nodes
// has fields with the keys of other indexes. What "featurebase backup" made is
// taken in by "cutbank snapshot --system featurebase -- --dir DIR", for restoring it
// with what is said above; the epochs of timestamp fields, which the tool forgets, are
// found from their bounds; what else it has forgotten, as it does with shards that fail
// beside a dataframe that does not, cannot be seen in it.
//
// # What is not covered
//
// The external lookup database (lookup-db-dsn), which is warned of, and the nodes'
// configuration, certificates and permissions. A dataframe of a shard that has no
// records besides: the API does not list it. Where dataframes are not in use in the
// new cluster they are named as not restored. Scratch space takes all that is captured
// once, and a capture reads all of it: the API has no increments. Replicas are not
// compared with each other: a shard is what the first of its nodes has of it.
//
// A node with authentication may crash when several requests are the first of a token:
// begin with --concurrency 1 if tokens are short-lived.
package featurebase
