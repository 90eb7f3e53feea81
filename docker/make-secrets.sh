#!/bin/sh
# Makes every key and password of the demo at its first start. Each directory below /secrets is a volume that one
# service alone mounts, so each knows its own secrets and no others.
set -eu
umask 077
cd /secrets

if [ -e demo/token ]; then
  echo 'secrets: kept those of the first start'
  exit 0
fi

random() { od --address-radix=n --format=x1 --read-bytes=32 /dev/urandom | tr -d ' \n'; }

# SSH, both ways: the replica host proves itself by its key, the primary by its host key.
rm -f replica/id_ed25519* primary/ssh_host_ed25519_key*
ssh-keygen -q -t ed25519 -N '' -C pgcloned -f replica/id_ed25519
ssh-keygen -q -t ed25519 -N '' -C primary -f primary/ssh_host_ed25519_key
cp replica/id_ed25519.pub primary/authorized_keys
echo "[primary]:2222 $(cut -d ' ' -f 1,2 primary/ssh_host_ed25519_key.pub)" >replica/known_hosts

# The roles of the database.
random >primary/cloner-password
random >primary/app-password
echo "primary:5432:*:cloner:$(cat primary/cloner-password)" >replica/pgpass
echo "*:5432:shop:app:$(cat primary/app-password)" >demo/pgpass

# Redis, and the URL with its password for the two that use it.
redis_password=$(random)
cat >redis/redis.conf <<CONF
requirepass $redis_password
appendonly yes
save ""
maxmemory-policy noeviction
dir /data
CONF
for service in api replica; do
  printf 'redis: redis://:%s@redis:6379\n' "$redis_password" | cat - "/demo/$service.yaml" >"$service/pgcloned.yaml"
done

# The API knows the hash of the token, the demo the token: its presence says that all of this was made.
token=pgcloned_$(random)
cat >>api/pgcloned.yaml <<YAML
  tokens:
    - {name: demo, role: operator, sha256: $(printf %s "$token" | sha256sum | cut -d ' ' -f 1)}
YAML
chown -R 999:999 primary replica redis api demo
printf %s "$token" >demo/token.new
chown 999:999 demo/token.new
mv demo/token.new demo/token
echo 'secrets: made keys, passwords and a token'
