#!/bin/sh
# One clone from POST to streaming, then the proof: a row written on the primary is read on the replica.
set -eu

PGCLONED_TOKEN=$(cat /secrets/token)
PGPASSFILE=/secrets/pgpass
export PGCLONED_TOKEN PGPASSFILE

say() { echo "--- $*"; }

# Calls a command until it succeeds; whatever is waited for here takes seconds.
await() { # WHAT COMMAND…
  what=$1 tries=0
  shift
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 120 ] || { say "gave up waiting for $what"; "$@"; exit 1; }
    sleep 0.5
  done
}

query() { # HOST SQL
  psql --no-psqlrc --quiet --tuples-only --no-align --host="$1" --username=app --dbname=shop --command="$2"
}

replica_registered() { pgcloned host list | grep --quiet --word-regexp replica; }
await 'the worker on host replica' replica_registered
await 'the primary' query primary 'SELECT 1'

say 'POST /v1/clones: primary -> replica, while pgbench writes'
pgcloned clone create --file /demo/clone.yaml --wait --progress plain

say 'a row is written on the primary …'
id=$(query primary "INSERT INTO messages (body) VALUES ('hello from the primary') RETURNING id")
row_arrived() { [ -n "$(query replica "SELECT id FROM messages WHERE id = $id")" ]; }
await 'the row on the replica' row_arrived
say "… and read on the replica: $(query replica "SELECT body FROM messages WHERE id = $id")"
say "the replica is in recovery: $(query replica 'SELECT pg_is_in_recovery()')"
say "left on the primary: $(query primary 'SELECT count(*) FROM pg_replication_slots') slots," \
  "$(query primary "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgcloned%'") sessions of ours"
say 'done. Look around: docker compose exec replica psql shop'
