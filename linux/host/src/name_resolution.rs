//! Names of hosts in a statically linked program.

/// Makes look-ups of host names use `/etc/hosts` and DNS only, whatever `/etc/nsswitch.conf` says. To be called before
/// anything else happens. Does something in a program that is statically linked with glibc only: there, any other service is
/// a shared library of this host, which brings a C library of its own along that is not the one the program was made with.
pub fn use_builtin_name_resolution() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    {
        unsafe extern "C" {
            fn __nss_configure_lookup(
                database: *const libc::c_char,
                services: *const libc::c_char,
            ) -> libc::c_int;
        }
        // SAFETY: the function only reads the two texts, which end with a zero and live forever.
        let result = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
        if result != 0 {
            tracing::warn!("host names are looked up as /etc/nsswitch.conf says");
        }
    }
}
