# Installs Python packages below /tmp/layer. Only wheels: nothing of a package runs here.
set -eu
export UV_CACHE_DIR=/tmp/cache TMPDIR=/tmp UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=hardlink UV_HTTP_RETRIES=2
mkdir -p /tmp/layer
set -- --python /usr/bin/python3 --only-binary :all: --target /tmp/layer/python --no-progress --color never
if [ -n "${INDEX:-}" ]; then set -- "$@" --default-index "$INDEX"; fi
# A name and a version have nothing in them that a shell splits or expands.
uv pip install "$@" -- $PACKAGES
rm -rf /tmp/cache
if [ -d /tmp/layer/python/bin ]; then mv /tmp/layer/python/bin /tmp/layer/bin; fi
rm -f /tmp/layer/python/.lock
