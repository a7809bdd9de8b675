#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes an NSS softokn token from nothing, in a directory of its own.
#
#   make-nss-token.sh DIR LABEL [PIN]
#
# Afterwards DIR holds the database, the PIN in DIR/pin, and in DIR/init-args
# what C_Initialize must be given (kekd: token.init_args). NSS does not enforce
# what it should (CKA_EXTRACTABLE=false can be undone), so kekd serves from it in
# tests only.
set -euo pipefail
if [[ $# -lt 2 || $# -gt 3 ]]; then
  echo "usage: ${0##*/} DIR LABEL [PIN]" >&2
  exit 2
fi
umask 077
mkdir -p "$1"
dir=$(cd "$1" && pwd)
pin=${3:-nsspin12}
printf '%s\n' "$pin" > "$dir/pin"
certutil -N -d "sql:$dir" -f "$dir/pin" > /dev/null
printf "configdir='sql:%s' certPrefix='' keyPrefix='' secmod='' flags= dbTokenDescription='%s'" "$dir" "$2" > "$dir/init-args"
echo "$dir/init-args"
