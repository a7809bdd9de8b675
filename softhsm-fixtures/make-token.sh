#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a SoftHSM token from nothing, in a directory of its own.
#
#   make-token.sh DIR LABEL [PIN]
#
# DIR is created if need be. Afterwards it holds softhsm2.conf (use it with
# SOFTHSM2_CONF=DIR/softhsm2.conf), tokens/, the PIN in DIR/pin and the security
# officer's PIN in DIR/so-pin, all for the owner's eyes only. Run it again with
# another LABEL for a second token in the same DIR. Prints DIR/softhsm2.conf.
set -euo pipefail
if [[ $# -lt 2 || $# -gt 3 ]]; then
  echo "usage: ${0##*/} DIR LABEL [PIN]" >&2
  exit 2
fi
umask 077
mkdir -p "$1/tokens"
dir=$(cd "$1" && pwd)
label=$2
pin=${3:-1234}
so_pin=12345678
sed "s|@TOKENS@|$dir/tokens|" "$(dirname "${BASH_SOURCE[0]}")/softhsm2.conf.in" > "$dir/softhsm2.conf"
printf '%s\n' "$pin" > "$dir/pin"
printf '%s\n' "$so_pin" > "$dir/so-pin"
if ! output=$(SOFTHSM2_CONF="$dir/softhsm2.conf" softhsm2-util --init-token --free \
    --label "$label" --so-pin "$so_pin" --pin "$pin" 2>&1); then
  printf '%s: softhsm2-util failed: %s\n' "${0##*/}" "$output" >&2
  exit 1
fi
echo "$dir/softhsm2.conf"
