//! How the allocator takes memory: buffers of flows come from the kernel and go back to it.
//!
//! The GNU library learns from the first large piece that is freed to keep such pieces. A buffer that is used again has to be cleared
//! first, a megabyte for a connection that moves two bytes, and what flows have held once is held for good. From the kernel it comes
//! cleared, and only what is touched of it costs anything.
#![expect(unsafe_code, reason = "the allocator is told by a call of the C library")]

/// Pieces from this size on are the kernel's: the library's own first guess, which setting it makes the last.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BYTES: libc::c_int = 128 * 1024;

/// Keeps no large piece that is free.
pub fn keep_nothing_large() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes two numbers and keeps a third; it may be made at any time. Should it not know the number, it does nothing.
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
}
