// Package chunkstore puts and gets chunks by ID: it deduplicates, groups new
// chunks into frames and frames into packs, and on the way back finds, opens
// and proves them. It knows nothing of files and trees, and it never removes
// anything. It declares the Index that it needs; package index fills it.
//
// Writing: a Writer belongs to one session (one snapshot being written). Every
// goroutine that has chunks takes a Stream of its own, so that chunks that are
// put one after the other lie in one frame. A chunk is known if a usable pack
// holds it, or if the session has put it before. Full frames are compressed by
// as many goroutines as there are cores and sealed into the open pack; full
// packs are stored in the background, several at once where that is a gain, within
// a bound in bytes. A pack is put once under its name: one that is not there after
// an unclear answer goes under another. The order is what makes a crash harmless:
// a pack is durable before the index knows it, and a segment names it only
// then.
//
// Reading: Get decodes a whole frame once, however many ask for it, and keeps
// it in a cache bounded in bytes. A chunk is proven against its ID once per
// decoded frame.
//
// Reading across a network (backend.Transfers of more than one), where a request
// costs as much time as megabytes do: a frame that is read by itself is one request;
// who reads on in a pack is fetched ahead of in pieces that grow to 4 MiB; what
// Prefetch was told of is fetched with one request for neighbours up to 512 KiB
// apart, several at once; and a pack with pages comes as a whole, soon. What was
// fetched so stays sealed in memory, within Options.AheadBytes (96 MiB) for
// all readers together, what is under way included, beside one frame for each
// reader. Options.Disk keeps frames that opened on the local disk; one that does not
// open there any more is fetched again. A local folder is read as ever, a frame
// with one call.
package chunkstore
