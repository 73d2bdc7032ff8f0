#!/bin/sh
# Writes what is not known before the container runs, then becomes PgBouncer.
set -eu

# A route that a cutover has written is the truth: only a first start leads to blue.
[ -f /run/routes/databases.ini ] || printf '[databases]\nshop = host=blue port=5432 dbname=shop\n' >/run/routes/databases.ini

# In clear, readable by us alone: SCRAM towards the servers needs the password itself.
umask 077
printf '"postgres" "%s"\n' "$(sed 's/"/""/g' /run/secrets/db_password)" >/run/pooler/users.txt

exec /usr/sbin/pgbouncer /etc/pooler/pgbouncer.ini
