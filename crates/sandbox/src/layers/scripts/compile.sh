# Compiles what Python would compile anew in every run, and believes it without a look at its source's time, for all files have one.
# Tests of packages are seldom imported, and many.
exec python3 -m compileall -q -x '/tests?/' --invalidation-mode unchecked-hash /tmp/layer/python >/dev/null
