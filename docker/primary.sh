#!/bin/bash
# A database host: PostgreSQL with something writing to it, and sshd. Ends when one of them ends.
set -euo pipefail

bin=/usr/lib/postgresql/15/bin
data=/var/lib/postgresql/15/main

# --- The first start ---------------------------------------------------------------------------------------------

# Made under another name, so that a start that was interrupted begins anew.
if [ ! -e "$data" ]; then
  new=$data.new
  rm --recursive --force "$new" /srv/fast/PG_*
  mkdir --parents "$(dirname "$data")"
  "$bin/initdb" --pgdata="$new" --data-checksums --locale=C.UTF-8 --auth-local=peer \
    --auth-host=scram-sha-256 >/dev/null
  cat >>"$new/postgresql.conf" <<'CONF'
listen_addresses = '*'
max_wal_size = '256MB'
CONF
  cat >>"$new/pg_hba.conf" <<'HBA'
host  postgres     cloner  samenet  scram-sha-256
host  replication  cloner  samenet  scram-sha-256
host  shop         app     samenet  scram-sha-256
HBA
  "$bin/pg_ctl" start --wait --silent --pgdata="$new" --options="-c listen_addresses=''" --log="$data.log"
  psql --no-psqlrc --quiet --file=/opt/primary/primary.sql
  PGOPTIONS='-c client_min_messages=warning' "$bin/pgbench" --initialize --quiet --scale=20 shop
  "$bin/pg_ctl" stop --wait --silent --pgdata="$new"
  mv "$new" "$data"
fi

# --- Every start -------------------------------------------------------------------------------------------------

"$bin/postgres" -D "$data" &
postgres=$!
/usr/sbin/sshd -D -e -f /opt/primary/sshd_config &
sshd=$!
# The clone is made of a cluster that is being written to, as they are in life.
(
  until "$bin/pg_isready" --quiet; do sleep 0.2; done
  exec "$bin/pgbench" --client=2 --rate=100 --time=86400 --no-vacuum shop >/dev/null
) &

# SIGINT is PostgreSQL's fast shutdown; pgbench ends when its connections do.
stop() {
  kill -INT "$postgres" 2>/dev/null || true
  kill -TERM "$sshd" 2>/dev/null || true
}
trap stop TERM INT
wait -n "$postgres" "$sshd" || true
stop
wait
