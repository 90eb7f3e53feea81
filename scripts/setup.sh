#!/bin/sh
# Makes this checkout ready to run: Debian packages, dependencies, Node 24.
# Safe to repeat, quick when nothing is missing. It needs a Node with npm, and apt where a package is missing.
set -eu
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
fail() {
  say "$*"
  exit 69
}

# Whoever may only read the checkout (postgres, say) can use what its owner set up, and nothing else.
if [ ! -w . ]; then
  [ -x node_modules/.bin/pgcloned ] && exit 0
  fail "this checkout is not set up, and $(id -un) may not write to it. Run \`npm run setup\` as $(stat -c %U .)."
fi

# Two at once would tear node_modules apart.
mkdir -p node_modules
exec 9>node_modules/.setup.lock
flock 9

# --- Debian packages ---------------------------------------------------------------------------------------------

missing=''
need() { # PROGRAM PACKAGE
  [ -n "$(PATH=$PATH:/usr/sbin:/sbin command -v "$1")" ] || missing="$missing $2"
}
need git git
need rsync rsync
need ssh openssh-client
need sshd openssh-server
need setpriv util-linux
need ip iproute2
# The filesystems of the tests, and what tells of theirs.
need filefrag e2fsprogs
need mkfs.xfs xfsprogs
need mkfs.btrfs btrfs-progs
need redis-server redis-server
need shellcheck shellcheck
# The tests clone clusters of other locales.
[ -e /usr/share/i18n/locales/ru_RU ] || missing="$missing locales"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$missing postgresql"

if [ -n "$missing" ]; then
  command -v apt-get >/dev/null || fail "these packages are missing, and there is no apt-get to install them:$missing"
  if [ "$(id -u)" != 0 ]; then
    fail "Debian packages are missing. Install them, then run this again:
  sudo apt-get install --no-install-recommends$missing"
  fi
  say "installing Debian packages:$missing"
  # Only their programs are wanted: no server of the system may start, and no cluster may be made.
  export DEBIAN_FRONTEND=noninteractive
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  apt-get update -qq
  case $missing in
    *postgresql*)
      apt-get install -qq -y --no-install-recommends postgresql-common >/dev/null
      sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
      ;;
  esac
  # shellcheck disable=SC2086 # one word per package
  apt-get install -qq -y --no-install-recommends $missing >/dev/null
fi

# --- Dependencies ------------------------------------------------------------------------------------------------

pnpm=node_modules/.bin/pnpm
pnpm_wanted=$(sed -n 's/.*"packageManager": "\(pnpm@[^"]*\)".*/\1/p' package.json)
# The lockfile was reviewed, so the age of its entries is not looked up again.
if [ -x "$pnpm" ] && [ "pnpm@$("$pnpm" --version 2>/dev/null)" = "$pnpm_wanted" ]; then
  "$pnpm" install --frozen-lockfile --trust-lockfile --loglevel=warn
else
  say 'installing dependencies'
  npm exec --yes --package="$pnpm_wanted" -- pnpm install --frozen-lockfile --trust-lockfile --loglevel=warn
fi

# --- Node --------------------------------------------------------------------------------------------------------

# The pinned Node is a dependency like any other, so every machine runs the same one: node_modules/.bin/node.
node=$(echo node_modules/node-linux-*/bin/node)
[ -x "$node" ] || fail "the registry has no Node 24 for $(uname -sm)."
ln -srfn "$node" node_modules/.bin/node
