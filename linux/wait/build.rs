//! Compiles `src/program.rs` once for each kind of wait program. It is a program of its own, without libc and without `std`, because it
//! runs in containers that have neither.

use std::path::PathBuf;
use std::process::Command;

const PROGRAM: &str = "src/program.rs";

fn main() {
    println!("cargo::rerun-if-changed={PROGRAM}");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = PathBuf::from(variable("OUT_DIR"));
    // The program needs no C library of the target. That of the host is always there.
    let (host, target) = (variable("HOST"), variable("TARGET"));
    let target = if architecture(&host) == architecture(&target) { host } else { target };
    for kind in ["multicast", "interface", "nothing"] {
        let mut rustc = Command::new(variable("RUSTC"));
        rustc.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "w"]);
        rustc.args(["--target", &target, "--cfg", &format!("waits_for=\"{kind}\"")]);
        for option in ["opt-level=s", "panic=abort", "strip=symbols", "relocation-model=static"] {
            rustc.args(["-C", option]);
        }
        for argument in ["-nostdlib", "-nostartfiles", "-static", "-Wl,--build-id=none"] {
            rustc.arg("-C").arg(format!("link-arg={argument}"));
        }
        if let Ok(linker) = std::env::var("RUSTC_LINKER") {
            rustc.arg("-C").arg(format!("linker={linker}"));
        }
        let status = rustc.arg("-o").arg(out.join(kind)).arg(PROGRAM).status();
        let compiled = status.unwrap_or_else(|e| panic!("cannot run rustc: {e}")).success();
        assert!(compiled, "{PROGRAM} does not compile");
    }
}

fn architecture(target: &str) -> Option<&str> {
    target.split('-').next()
}
