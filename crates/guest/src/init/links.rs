//! Names under `/dev` that programs expect and devtmpfs does not have. Without `/dev/fd`, bash's `<(…)` fails.

use rustix::io::Errno;

use super::InitError;

const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/newroot/dev/fd"),
    ("/proc/self/fd/0", "/newroot/dev/stdin"),
    ("/proc/self/fd/1", "/newroot/dev/stdout"),
    ("/proc/self/fd/2", "/newroot/dev/stderr"),
];

/// Makes the links, on the root image that is being put together.
pub(super) fn make() -> Result<(), InitError> {
    for (target, path) in LINKS {
        match rustix::fs::symlink(target, path) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => return Err(InitError::Make { path, source }),
        }
    }
    Ok(())
}
