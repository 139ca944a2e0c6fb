# Packs /tmp/layer into one file, and says what is in it. Compressed only if it could not be taken out otherwise: that costs each of
# its readers.
set -eu
cd /tmp/layer
for about in python/*.dist-info; do
    if [ -f "$about/METADATA" ]; then
        awk -F': ' '/^Name: /{n=$2} /^Version: /{print n " " $2; exit} /^$/{exit}' "$about/METADATA"
    fi
done
for about in node_modules/*/package.json node_modules/@*/*/package.json; do
    if [ -f "$about" ]; then jq -r '"\(.name) \(.version)"' "$about"; fi
done
size=$(du -sm /tmp/layer | cut -f1)
if [ "$size" -gt "$PLAIN_MIB" ]; then set -- -zlz4; else set --; fi
mkfs.erofs --quiet "$@" -T0 --all-root -U 00000000-0000-4000-8000-000000000002 "$HOME/layer" /tmp/layer >&2
