//! The wait program of the Docker API proxy, as files that containers see (docs/spec/containers.md A.11).
//!
//! The proxy makes `/w/w` the entrypoint of a container. It waits until the container is attached, and then becomes the container's own
//! program, which so has its network from its first instruction on. It is a static program of five kilobytes without libc
//! (`program.rs`), because it runs in images of any kind. There are three of them, each named `w` in its own directory:
//!
//! | directory | waits for |
//! | --- | --- |
//! | [`MULTICAST`] | `ethwe` is up and there is a route for multicast, which is added last |
//! | [`INTERFACE`] | `ethwe` is up |
//! | [`NOTHING`] | - |
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use weave_host::files::write_atomically;

/// Directory of the program that waits for interface and route.
pub const MULTICAST: &str = "multicast";
/// Directory of the program that waits for the interface only.
pub const INTERFACE: &str = "interface";
/// Directory of the program that does not wait.
pub const NOTHING: &str = "nothing";

static PROGRAMS: [(&str, &[u8]); 3] = [
    (MULTICAST, include_bytes!(concat!(env!("OUT_DIR"), "/multicast"))),
    (INTERFACE, include_bytes!(concat!(env!("OUT_DIR"), "/interface"))),
    (NOTHING, include_bytes!(concat!(env!("OUT_DIR"), "/nothing"))),
];

/// Writes the programs into `directory`, unless they are there. Containers may be using them.
///
/// # Errors
/// A file cannot be written.
pub fn install(directory: &Path) -> io::Result<()> {
    for (name, program) in PROGRAMS {
        let directory = directory.join(name);
        // Any user of a container may run it.
        DirBuilder::new().recursive(true).mode(0o755).create(&directory)?;
        let path = directory.join("w");
        if std::fs::read(&path).is_ok_and(|there| there == program) {
            continue;
        }
        write_atomically(&path, program, 0o755)?;
    }
    Ok(())
}
