//! Helpers of tests with Docker.

/// `typed LINE COMMAND` of a shell: types a line into a command with a terminal once its prompt is there, and prints what the terminal
/// showed. An empty line makes a shell show its prompt again to a client that attaches late.
pub const TYPED: &str = r#"
typed() {
  terminal=$(mktemp -d); mkfifo $terminal/in
  script -qec "$2" /dev/null < $terminal/in > $terminal/out &
  exec 3> $terminal/in
  for i in $(seq 300); do ! grep -q '# ' $terminal/out || break; echo >&3; sleep 0.2; done
  echo "$1" >&3; wait $!; exec 3>&-; cat $terminal/out; rm -r $terminal
}
"#;
