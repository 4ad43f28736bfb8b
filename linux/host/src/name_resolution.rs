//! Resolution of host names in a statically linked program.

/// Makes glibc resolve host names by `/etc/hosts` and DNS only, whatever services `/etc/nsswitch.conf` names. Call it before any other
/// thread exists. It has an effect in a program that is statically linked with glibc only: other services are shared libraries of the
/// host, which load the C library of the host, and that may be incompatible with the one in the program.
pub fn use_builtin_name_resolution() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    {
        unsafe extern "C" {
            fn __nss_configure_lookup(
                database: *const libc::c_char,
                services: *const libc::c_char,
            ) -> libc::c_int;
        }
        // SAFETY: both arguments are static strings that end with a zero, which the function only reads.
        let result = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
        if result != 0 {
            tracing::warn!(
                "host names are resolved by the services of /etc/nsswitch.conf, which may fail in a static binary"
            );
        }
    }
}
