//! The wait programs as processes, without containers.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use tempfile::TempDir;
use weave_wait::{INTERFACE, MULTICAST, NOTHING, install};

fn installed() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    install(directory.path()).unwrap();
    directory
}

/// Written before any test starts a process, which would hold a file open for writing until it executes another program.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    install(&directory).unwrap();
    directory
});

fn program(kind: &str) -> PathBuf {
    PROGRAMS.join(kind).join("w")
}

fn run(arguments: &[&str], path: &str) -> Output {
    let mut command = Command::new(program(NOTHING));
    command.args(arguments).env_clear().env("PATH", path).env("COLOUR", "blue").output().unwrap()
}

#[test]
fn files_are_written_once() {
    let directory = installed();
    let file = |kind: &str| std::fs::metadata(directory.path().join(kind).join("w")).unwrap();
    let before = file(MULTICAST);
    assert_eq!(before.mode() & 0o777, 0o755);
    install(directory.path()).unwrap();
    assert_eq!(file(MULTICAST).ino(), before.ino());
    std::fs::write(directory.path().join(INTERFACE).join("w"), "damaged").unwrap();
    install(directory.path()).unwrap();
    assert!(file(INTERFACE).len() > 1000);
}

#[test]
fn becomes_the_program() {
    let output = run(&["sh", "-c", "echo $0 $1 $COLOUR; exit 7", "a", "b c"], "/nosuch::/usr/bin:/bin");
    assert_eq!((output.status.code(), &*output.stdout), (Some(7), b"a b c blue\n".as_slice()));
    assert_eq!(run(&["/bin/echo", "x"], "").stdout, b"x\n");
}

#[test]
fn programs_that_cannot_be_run() {
    for (arguments, path, message) in [
        (&[][..], "/bin", "No command specified\n"),
        (&["nosuch"], "/usr/bin:/bin", "exec: \"nosuch\": executable file not found in $PATH\n"),
        (&["sh"], "", "exec: \"sh\": executable file not found in $PATH\n"),
        (&[""], "/bin", "exec: \"\": executable file not found in $PATH\n"),
        (&["passwd"], "/etc", "exec: \"passwd\": permission denied\n"),
        (&["/nosuch"], "/bin", "exec: \"/nosuch\": no such file or directory\n"),
    ] {
        let output = run(arguments, path);
        assert_eq!((output.status.code(), &*output.stderr), (Some(1), message.as_bytes()), "{arguments:?}");
    }
    let long = format!("{}:/bin", "/x".repeat(3000));
    assert_eq!(run(&["echo", "found"], &long).stdout, b"found\n", "a directory that is too long is left out");
}

/// In a network namespace of its own: each program prints a line when it has waited long enough, and `step` is between.
#[test]
fn waits_for_interface_and_route() {
    if !is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    // `timeout` ends with 124 while the program waits.
    let script = format!(
        "waits() {{ timeout 0.3 $1 true; [ $? = 124 ] && echo yes || echo no; }}
         waits {interface}; waits {multicast}
         ip link add ethwe type veth peer name other; ip link set other up
         waits {interface}
         ip link set ethwe up
         waits {interface}; waits {multicast}
         {multicast} echo attached & sleep 0.2; ip route add 224.0.0.0/4 dev ethwe; wait
         waits {multicast}
         ip link set ethwe down; {multicast} sleep 60 & sleep 0.2; kill -TERM $!; wait $!; echo $?",
        interface = program(INTERFACE).display(),
        multicast = program(MULTICAST).display(),
    );
    let mut command = Command::new("unshare");
    let output = command.args(["--net", "sh", "-c", &script]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(words, ["yes", "yes", "yes", "no", "yes", "attached", "no", "143"], "{error}");
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
