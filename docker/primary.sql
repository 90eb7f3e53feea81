-- What an administrator does once on a primary that shall be cloned, and a table that is written to.
\set ON_ERROR_STOP on
\set cloner_password `cat /secrets/cloner-password`
\set app_password `cat /secrets/app-password`

CREATE ROLE cloner LOGIN REPLICATION PASSWORD :'cloner_password';
GRANT pg_monitor TO cloner;
GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO cloner;

CREATE ROLE app LOGIN PASSWORD :'app_password';
CREATE DATABASE shop OWNER app;
\connect shop
CREATE TABLESPACE fast OWNER app LOCATION '/srv/fast';
SET ROLE app;
CREATE TABLE messages (id bigint GENERATED ALWAYS AS IDENTITY, body text NOT NULL) TABLESPACE fast;
