// Package command captures whatever commands can dump, or hooks can make hold still,
// and has what the packages of systems share that are captured by their own tools:
// processes that end when they must.
//
// # What is in a snapshot
//
// Either one file, the standard output of a command (--stream, --as), or what is in a
// directory (--dir), as a snapshot of that directory would have it: unchanged files
// are not read. The record says which, and what --version-cmd and --cluster-cmd
// printed. Commands themselves are not stored, for they may hold secrets: keep the
// recipe with what else you need to set the system up anew.
//
// # The order of things, and what is certain
//
//   - A run writes down in a file of the folder for local state that it begins. One
//     that finds the file of a run that was killed (SIGKILL, a crash, power) says so
//     and runs the abort hook first, before it asks for the version; if that fails
//     nothing is begun. Two runs of the
//     same --name and stream or directory do not go on beside each other. The file
//     outlives the process, not the folder: where that is volatile, or --no-cache has
//     it below TMPDIR, so is what it knows.
//   - pre runs. If it fails, or takes longer than --hook-timeout, nothing is captured
//     and abort runs.
//   - The stream's command runs while it is read. Unless it exits with 0 nothing is
//     committed, whatever it has printed, and the error has the end of what it said on
//     stderr. So it is with a directory of which something cannot be read, or that is
//     gone, or another one, when it was read.
//   - Of a pipe only the last command counts: "tar -C nosuch -c . | gzip" exits with 0,
//     whatever has become of tar. Have bash look at all of them:
//     bash -o pipefail -c 'tar -C dir -c . | gzip'.
//   - What a command that exits with 0 has said on its standard error is shown as a
//     warning when it has ended, the last two kibibytes of it, with --quiet too; -v
//     shows all, as it comes. So no secret may be said there ("set -x" says many).
//   - post runs when the snapshot is committed, and not before: it may remove what
//     the snapshot has now, such as archived logs. What pre stopped is therefore
//     stopped until the last byte is stored; a stream to a slow place stops it long.
//   - abort runs instead if it is not: after any failure, Ctrl-C, SIGTERM, a terminal
//     that is closed, or a repository that is lost. Where post or abort fails, the
//     snapshot stays as it is (kept or not), the run says so and its exit code is 1,
//     also where a snapshot is kept, and the next one runs abort first. So abort must
//     do no harm where there is nothing to abort.
//   - A second Ctrl-C ends the program at once, as SIGKILL does.
//
// Each command is the leader of a process group. To end one, the group gets SIGTERM,
// and SIGKILL five seconds later; so it is if cutbank is killed. What a hook that has
// ended by itself leaves running, such as a session that holds a lock, is left alone.
//
// # Modes
//
// --mode light and dataless need commands of their own, --stream-light and
// --stream-dataless, for only they know what is a value and what a secret; without
// them these modes are refused. Of a directory light has the contents of the files that
// --data names, by patterns of .gitignore files, and dataless those of none, as
// "cutbank snapshot --mode" has them; only a full one is restored by --system.
//
// # Restoring in production
//
//  1. "cutbank restore NAME/latest --system command --dry-run -- --recipe FILE" says
//     what would go where, and refuses another version or cluster.
//  2. Stop what uses the system. cutbank does not: the recipe has no hooks for it.
//  3. The same without --dry-run. A stream goes to the restore command's standard
//     input. If stored data is damaged, or cutbank is killed, so is the command, and
//     never sees an end that is none; use one that takes all or nothing (psql -1). It
//     must exit with 0, and read all but zeros at the end, of which tar leaves some. A
//     directory is made to hold what the snapshot holds, and nothing else, if it is
//     empty or with --force; then the restore command runs.
//     What the command hands its input to on another machine or in a container (ssh,
//     docker exec, kubectl exec) is not killed with it, and does see an end: psql -1
//     would commit there. Bring the stream into a file there first, and load that when
//     cutbank has exited with 0.
//  4. Check with the system's own tools, and start it.
//
// # What is not covered
//
// Whether a dump is consistent is the command's business, and whether a directory is,
// that of the hooks. What the commands need beside it (configuration, keys, roles) is
// in no snapshot unless they print it.
package command
