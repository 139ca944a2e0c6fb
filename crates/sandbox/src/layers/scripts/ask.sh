# Asks an index at which hosts its files are: for each package a line for each address.
set -eu
for name in $NAMES; do
    curl --silent --show-error --fail --location --max-time 30 ${CERTIFICATES:+--cacert "$CERTIFICATES"} \
        --header 'Accept: application/vnd.pypi.simple.v1+json, application/json;q=0.9, text/html;q=0.5' \
        "${INDEX%/}/$name$SUFFIX"
done | grep -oE 'https://[^/" >]+' | sort -u
