//! Memory of this process.

/// Gives free memory back to the kernel. The allocator of the C library keeps it, and after times of many messages, as when a large mesh forms, this is
/// most of it. Does nothing where the C library has no such function.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim can be called at any time by any thread.
        unsafe { libc::malloc_trim(0) };
    }
}
