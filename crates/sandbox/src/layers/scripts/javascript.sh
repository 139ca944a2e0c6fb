# Installs JavaScript packages below /tmp/layer. No scripts of theirs are run.
set -eu
export BUN_INSTALL_CACHE_DIR=/tmp/cache TMPDIR=/tmp DO_NOT_TRACK=1
mkdir -p /tmp/layer
cd /tmp/layer
echo '{}' >package.json
set -- --exact --ignore-scripts --no-progress --backend=hardlink
if [ -n "${INDEX:-}" ]; then set -- "$@" --registry "$INDEX"; fi
# A name and a version have nothing in them that a shell splits or expands.
bun add "$@" $PACKAGES
rm -rf /tmp/cache package.json bun.lock bun.lockb
if [ -d node_modules/.bin ]; then ln -s node_modules/.bin bin; fi
