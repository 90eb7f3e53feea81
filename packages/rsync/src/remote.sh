#!/bin/sh
# Everything that runs on the source host. Called as `sh -c THIS pgcloned VERB ARGUMENT…`, so that standard input
# stays free for secrets and heartbeats: a shell that reads its script from there swallows them block by block.
#
# Needs a POSIX shell, GNU find and rsync. Answers start after a marker line, because a login shell may greet.
# `serve` is the one verb that stays: an rsync daemon on a lease (see there). What it makes lies in one directory of
# mode 0700, named CLONE.PID.RANDOM, and `sweep` removes such a directory once nobody is in charge of it.
set -u
umask 077
LC_ALL=C
PATH=${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin
export LC_ALL PATH

STATUS_MISSING=44

# Values in rsyncd.conf know neither quotes nor escapes, so the path must be a plain one.
temporary=${TMPDIR:-/tmp}
case $temporary in [!/]* | *[!A-Za-z0-9/._-]*) temporary=/tmp ;; esac

say() { printf 'pgcloned %s\n' "$*"; }
answer() { printf '\npgcloned answers\n'; }
fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

probe() { # DATA_DIRECTORY
  readable=no
  version=$(rsync --version 2>/dev/null)
  if [ -r "$1" ] && [ -x "$1" ] && [ -r "$1/PG_VERSION" ]; then readable=yes; fi
  answer
  # shellcheck disable=SC2185 # this find looks for nothing
  printf '%s\n' \
    "user=$(id -un 2>/dev/null || id -u)" \
    "now=$(date +%s%N)" \
    "rsync=$(printf '%s\n' "$version" | sed -n '1s/^rsync  *version v*\([0-9.]*\).*/\1/p')" \
    "compressions=$(printf '%s\n' "$version" | sed -n '/^Compress list:/{n;p;}')" \
    "find=$(find --version 2>/dev/null | sed -n 1p)" \
    "installer=$(command -v apt-get || command -v dnf || command -v zypper)" \
    "readable=$readable" \
    'postmaster.pid'
  if [ -e "$1/postmaster.pid" ]; then cat "$1/postmaster.pid"; fi
}

# Only "no such file" means no: a directory that may not be passed through hides what is in it.
exists() { # PATH
  if problem=$(ls -d -- "$1" 2>&1 >/dev/null); then
    answer && echo yes
    return
  fi
  case $problem in
    *'No such file or directory' | *'Not a directory') answer && echo no ;;
    *) fail "$problem" ;;
  esac
}

# One line per path: the package that has brought it, or nothing.
packages() { # PATH…
  answer
  for path in "$@"; do
    name=$(dpkg-query --search "$path" 2>/dev/null | sed -n '1s/[:,].*//p')
    [ -n "$name" ] || name=$(rpm --query --file --queryformat '%{NAME}' "$path" 2>/dev/null) || name=
    printf '%s\n' "$name"
  done
}

# One read(2) of the whole, since what is read may be overwritten meanwhile.
read_file() { # PATH BYTES_MAX
  answer
  if { problem=$(dd if="$1" bs="$2" count=1 2>&1 >&3); } 3>&1; then return; fi
  case $problem in
    *'No such file or directory' | *'Not a directory') exit $STATUS_MISSING ;;
    *) fail "$problem" ;;
  esac
}

# Pages of a file, each by one read(2), as many as there are.
read_pages() { # PATH PAGE_BYTES FIRST COUNT
  answer
  if { problem=$(dd if="$1" bs="$2" skip="$3" count="$4" 2>&1 >&3); } 3>&1; then return; fi
  case $problem in
    *'No such file or directory' | *'Not a directory') exit $STATUS_MISSING ;;
    *) fail "$problem" ;;
  esac
}

# For each directory the word `root`, then one record per entry, its own first; everything ends in a NUL, because names
# may hold any other byte. A directory that does not exist has no record, and what vanishes meanwhile is no error.
list() { # DIRECTORY…
  answer
  for root in "$@"; do
    printf 'root\0'
    { problem=$(find -H "$root" -ignore_readdir_race \
      -printf '%y\0%s\0%T@\0%C@\0%i\0%m\0%P\0%l\0' 2>&1 >&3); } 3>&1
    status=$?
    lasting=$(printf '%s\n' "$problem" | grep -v ': No such file or directory$' | head -n 5)
    [ -z "$lasting" ] || fail "$lasting"
    # 1 is about what it has named. One that was killed may have named something, too, and not seen the rest.
    [ "$status" -eq 0 ] || { [ "$status" -eq 1 ] && [ -n "$problem" ]; } ||
      fail "find failed with exit status $status"
  done
}

# An rsync daemon that lives only as long as somebody asks for it: R7.5, R7.6.
#
# Standard input: the password, the nonce, then `beat`, `port N` (start rsync there; it may fail, then the next) and
# `stop`. Standard output: `ready DIRECTORY`, `ended PORT STATUS REASON` for each rsync that ended by itself, `gone`.
#
# Three parties in one process group. We read the commands; at `stop` or the end of the input, which is all that a dead
# engine leaves us, we end the group. The guard does so when we are killed, or when no `beat` came for LEASE_SECONDS:
# nothing else notices a network that went silent. sshd itself kills nobody.
serve() { # CLONE LEASE_SECONDS USER CONNECTIONS_MAX CLIENTS ADDRESS [MODULE PATH]…
  clone=$1 lease=$2 user=$3 connections=$4 clients=$5 address=$6
  shift 6
  main=$$
  # Signals go to the whole group: it has to be ours alone. sshd makes one for each command.
  read -r _ _ _ _ group _ </proc/$main/stat
  [ "$group" = "$main" ] || fail 'the login shell does not start commands in a process group of their own'
  IFS= read -r password || fail 'no password was sent'
  IFS= read -r nonce || fail 'no nonce was sent'
  directory=$(mktemp -d "$temporary/$clone.$main.XXXXXXXX") || fail "cannot make a directory below $temporary"

  # A signal that came before the guard awaits it would kill the guard.
  trap '' USR1
  guard=
  stand_guard </dev/null >/dev/null 2>&1 &
  guard=$!
  { echo "$guard" >"$directory/guard" && configure "$@"; } || end
  say "ready $directory"

  while IFS= read -r line; do
    case $line in
      beat) kill -USR1 "$guard" 2>/dev/null || break ;;
      'port '*) listen "${line#port }" </dev/null & ;;
      stop) break ;;
    esac
  done
  end
}

stand_guard() {
  trap '' TERM HUP INT PIPE
  trap 'silence=0' USR1
  silence=0
  while [ "$silence" -lt "$lease" ] && kill -0 "$main" 2>/dev/null; do
    silence=$((silence + 1))
    sleep 1
  done
  end
}

# The first signal ends what waits for rsync, so that nobody takes our deed for a failure of rsync, and the main shell if
# the guard does this; the last one ends whoever is left, us included.
end() {
  trap '' TERM HUP INT PIPE
  kill -TERM "-$main"
  kill_rsync "$directory"
  rm -rf -- "$directory"
  if [ -n "$guard" ]; then
    kill -KILL "$guard"
    wait "$guard"
  fi 2>/dev/null
  say gone
  kill -KILL "-$main"
}

# Killing the listener alone would leave its connections (R7.7), and rsync takes its time over milder signals. Returns when
# none is left; one that hangs in the kernel is given up.
kill_rsync() { # DIRECTORY
  attempts=0
  while [ "$attempts" -lt 100 ]; do
    # The pattern goes by standard input: among the arguments of grep it would find grep.
    pids=$(printf '%s\n' "--config=$1/rsyncd.conf" |
      grep -l -F -f /dev/stdin -- /proc/[0-9]*/cmdline 2>/dev/null | sed 's,[^0-9],,g')
    [ -n "$pids" ] || return
    # shellcheck disable=SC2086 # one word per process
    kill -KILL $pids 2>/dev/null
    attempts=$((attempts + 1))
  done
}

configure() { # [MODULE PATH]…
  # SSH_CONNECTION: client address and port, server address and port.
  ssh=${SSH_CONNECTION:-127.0.0.1 0 127.0.0.1 0}
  [ -n "$address" ] || { address=${ssh#* * } && address=${address%% *}; }
  # R7.1. The timeout frees the connections of clients that died in silence; ours ask for a shorter one themselves.
  # By echo, which is built into every shell: printf is not, and would show the password among its arguments.
  echo "$user:$password" >"$directory/secrets" &&
    mkdir "$directory/modules" "$directory/modules/nonce" &&
    printf '%s\n' "$nonce" >"$directory/modules/nonce/nonce" &&
    printf '%s\n' \
      "address = $address" \
      'use chroot = no' \
      'read only = yes' \
      'list = no' \
      'reverse lookup = no' \
      "hosts allow = ${ssh%% *} $clients" \
      "auth users = $user" \
      "secrets file = $directory/secrets" \
      'strict modes = yes' \
      "max connections = $connections" \
      "lock file = $directory/lock" \
      "log file = $directory/log" \
      'timeout = 600' >"$directory/rsyncd.conf" || return
  # rsync would serve root's modules as nobody. As the owner of the data it may read all that we want, and no more;
  # it passes through our directory by its group.
  if [ "$(id -u)" = 0 ] && [ $# -ge 2 ]; then
    owner=$(stat -L -c %u "$2") && group=$(stat -L -c %g "$2") || return
    printf '%s\n' "uid = $owner" "gid = $group" >>"$directory/rsyncd.conf"
    chgrp "$group" "$directory" "$directory/modules" && chmod 0710 "$directory" "$directory/modules" || return
    chown -R "$owner" "$directory/modules/nonce" || return
  fi
  printf '%s\n' '[nonce]' "path = $directory/modules/nonce" >>"$directory/rsyncd.conf"
  # Links, because the paths themselves may hold what the configuration cannot express: R7.2.
  while [ $# -ge 2 ]; do
    ln -s -- "$2" "$directory/modules/$1" || return
    printf '%s\n' "[$1]" "path = $directory/modules/$1" >>"$directory/rsyncd.conf"
    shift 2
  done
}

listen() { # PORT
  env -i "PATH=$PATH" LC_ALL=C rsync --daemon --no-detach \
    --config="$directory/rsyncd.conf" --port="$1" >>"$directory/log" 2>&1
  status=$?
  say "ended $1 $status $(tail -n 3 "$directory/log" | sed 's/^[^]]*\] //' | tr '\n' ' ')"
}

# Removes what nobody is in charge of, and prints the names. A lease that still runs has a guard, so it is left alone.
sweep() {
  answer
  find "$temporary" -maxdepth 1 -type d -user "$(id -u)" -name 'pgcloned_*.[0-9]*.????????' |
    while IFS= read -r found; do sweep_directory "$found"; done
}

sweep_directory() { # DIRECTORY
  directory=$1
  name=${directory##*/}
  clone=${name%%.*}
  main=${name#*.}
  main=${main%%.*}
  guard=
  if [ -e "$directory/guard" ]; then read -r guard <"$directory/guard"; fi
  if is_wrapper "$clone" "$main" || is_wrapper "$clone" "$guard"; then return; fi
  kill_rsync "$directory"
  # Without our mark only an empty one: it broke off before there was a guard.
  if [ -e "$directory/guard" ]; then rm -rf -- "$directory"; else rmdir -- "$directory"; fi &&
    printf '%s\n' "$clone"
}

# A number may belong to another process by now; the wrapper of a clone has the clone's name among its arguments.
is_wrapper() { # CLONE PID
  [ -n "$2" ] && [ -r "/proc/$2/cmdline" ] &&
    tr '\0' '\n' <"/proc/$2/cmdline" 2>/dev/null | grep -q -x -F -- "$1"
}

verb=$1
shift
case $verb in
  read) read_file "$@" ;;
  pages) read_pages "$@" ;;
  probe | exists | packages | list | serve | sweep) "$verb" "$@" ;;
  *) fail "unknown verb: $verb" ;;
esac
