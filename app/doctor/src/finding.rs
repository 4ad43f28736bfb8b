use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work, or `weave launch` would fail.
    Error,
    /// Something works worse than it could, or soon will not.
    Warning,
    /// Worth knowing; it may be wanted.
    Notice,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A stable name for programs, as `udp-blocked`.
    pub check: &'static str,
    /// What is wrong.
    pub problem: String,
    /// What that leads to.
    pub effect: String,
    /// What mends it, a command where there is one.
    pub remedy: String,
}

impl Finding {
    pub(crate) fn new(
        severity: Severity,
        check: &'static str,
        problem: impl Into<String>,
        effect: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { severity, check, problem: problem.into(), effect: effect.into(), remedy: remedy.into() }
    }
}
