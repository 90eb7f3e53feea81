#!/bin/sh
# Runs a command of this checkout so that the user `postgres` can read the checkout, wherever it lies.
#
# As root our tests and the demo start their parts as `postgres`, who may not enter root's home, say. The command then gets
# a view of its own (a mount namespace) in which the closed directory holds this checkout and nothing else, open to all and
# at the same path. Nobody else sees that, and it ends with the command.
set -eu
checkout=$(cd "$(dirname "$0")/.." && pwd -P)

as_postgres() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }

if [ "$(id -u)" != 0 ] || as_postgres test -r "$checkout/package.json"; then exec "$@"; fi

closed='' path=''
IFS=/
for part in ${checkout#/}; do
  path=$path/$part
  if ! as_postgres test -x "$path"; then
    closed=$path
    break
  fi
done
unset IFS

help="the user postgres cannot read $checkout. Put the checkout into a directory that everyone may enter, or run this as another user than root."
if [ -z "$closed" ] || [ "$closed" = "$checkout" ] || ! unshare --mount true 2>/dev/null; then
  echo "$help" >&2
  exit 77
fi
umask 022
cd "$checkout"
# The working directory is all that still leads to the old place once the closed directory is covered.
# shellcheck disable=SC2016 # expanded by the inner shell
exec unshare --mount --propagation private sh -euc '
  mount -t tmpfs -o mode=755 tmpfs "$1"
  mkdir -p "$2"
  mount --no-canonicalize --bind /proc/self/cwd "$2"
  cd "$2"
  shift 2
  exec "$@"
' sh "$closed" "$checkout" "$@"
