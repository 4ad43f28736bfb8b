//! Memory of this process. Where the C library is not glibc, nothing happens.

/// Longer pieces of memory are mapped by themselves, and unmapped when they are free.
#[cfg(target_env = "gnu")]
const MAX_HEAP_PIECE: i32 = 32 << 10;

/// Keeps long messages off the heap, where what is allocated after them would prevent that their memory is given back. To be called before
/// other threads are started.
pub fn keep_long_pieces_off_the_heap() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt only changes a parameter of the allocator.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAX_HEAP_PIECE) };
    }
}

/// Gives free memory back to the kernel. The allocator keeps it, and after times of many messages, as when a large mesh forms, this is most of
/// it.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim can be called at any time by any thread.
        unsafe { libc::malloc_trim(0) };
    }
}
