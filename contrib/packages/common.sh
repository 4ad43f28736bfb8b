# shellcheck shell=bash
# What the scripts of this folder share. The same input gives the same bytes, on any machine and at any time.
export LC_ALL=C TZ=UTC
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
# shellcheck disable=SC2034 # used by those who read this file
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The architecture of a program, as Debian and OCI name it.
architecture() {
  case $(od -An -tu2 -j18 -N2 "$1" | tr -d ' ') in
    62) echo amd64 ;;
    183) echo arm64 ;;
    *) echo "$1: not a program for x86-64 or 64-bit ARM" >&2 && return 1 ;;
  esac
}

# A tar file of what is in a folder, on standard output.
archive() (
  cd "$1" && tar --create --format ustar --sort name --mtime "@$SOURCE_DATE_EPOCH" --owner 0 --group 0 --numeric-owner -- *
)
