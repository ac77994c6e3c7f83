// Package postgresql captures a PostgreSQL server through its own tools: all of it
// through pg_basebackup, or single databases through pg_dump.
//
// # What is in a snapshot
//
// A full one is a data directory as pg_basebackup sends it: the files of all databases,
// configuration that lies there, backup_label, backup_manifest, and in pg_wal the log
// that was written meanwhile. Tablespaces are in pg_tblspc/OID, and where they lay is
// in tablespace_map. Files have the times that they have on the server, so that
// "cutbank diff" of two snapshots says which changed. Tables and indexes are cut at the
// server's pages: of two snapshots what is new are the pages that were written.
//
// A light one has databases/NAME for each database, as pg_dump's directory format, not
// compressed: toc.dat alone, or with a file for each table where --data names the
// database; and globals.sql with roles, their passwords' hashes, and tablespaces. A
// dataless one has databases/NAME/schema.sql, without subscriptions and the users of
// foreign servers, and globals.sql with roles alone. It has no rows, no passwords and
// no settings; but what people wrote into definitions is there: names, comments,
// defaults, bodies of functions, options of foreign servers. Look at it before you give
// it away.
//
// The record has the server's version, its system identifier, whether it has checksums
// of data, and whether it was a standby.
//
// # What consistency it has
//
// A full snapshot is the server at the moment at which pg_basebackup ended, once the log
// is replayed; with checksums of data the server checks each page that it sends, and
// one that is wrong ends the snapshot. A dump is one database as it was when its dump
// began; two databases are of two moments.
//
// All is written to scratch space first, as much as the server has data (see --scratch),
// and read in full each time: what is stored is little, what is sent is all. A standby
// can be captured as well as a primary. If cutbank is killed the tools end and the
// server gives up the backup by itself: no slot and no lock stays.
//
// # Restoring in production
//
// A whole server, on a machine that has the same major version:
//
//  1. Stop the server; move its data directory away, and tablespaces, whose directories
//     are those of tablespace_map unless -T gives others. With --force the directory,
//     if it is one of the same server, is replaced, and so are its tablespaces; one
//     that is not linked from it is left alone unless -T names it. A link pg_wal in
//     it is replaced by a directory.
//  2. "cutbank restore NAME/latest --system postgresql --dry-run -- -D DIR", then
//     without --dry-run; as root with --owner postgres, or with DIR made for its owner
//     before. At the end pg_verifybackup has read all files and the log.
//  3. Look at postgresql.auto.conf: archive_command and primary_conninfo are those of the
//     server that was captured. To go on with archived log make recovery.signal and set
//     restore_command.
//  4. Start it. "pg_amcheck -a" looks into tables and indexes.
//
// A database of a light or dataless snapshot, into a running server:
//
//  1. "cutbank cat NAME/latest:globals.sql" shows the roles; make those that are missing.
//  2. "cutbank restore NAME/latest:databases/app --system postgresql -- -h HOST". One
//     that is there and empty is filled, in one transaction without -j. One that is
//     missing, or with --force is replaced, is made under another name,
//     "cutbank-new-...", and is renamed when it is whole; the old one is dropped after
//     that, so there must be room for both, and nobody may be connected to it. What a
//     run that was killed has left under such a name goes with the next. One that is
//     there and holds something is never replaced by structure alone, with --force or
//     without, and then nothing is changed at all: restore one that has data by its
//     path, or drop the other yourself. Of what is made of structure alone the result
//     says so. A database that had no table and no large object counts as such.
//  3. ANALYZE: dumps have no statistics.
//
// A light snapshot's database is made with the encoding, locale, owner, privileges and
// settings that it had, a dataless one's with those that are usual on the server.
// Who restores trusts the snapshot with all that the restoring user may do on the
// server, as with any dump; on this machine a schema can do nothing (psql's \restrict).
//
// # What is not covered
//
// Configuration outside of the data directory (Debian has it in /etc/postgresql: keep a
// snapshot of that); continuous archiving, and so recovery to moments between snapshots;
// large objects' owners are as pg_dump has them.
package postgresql
