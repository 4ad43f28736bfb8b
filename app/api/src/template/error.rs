//! Errors of templates, in Go's words.

/// The template has a syntax error: `template: format:1: unclosed action`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: format:{line}: {what}")]
pub struct ParseError {
    pub(super) line: usize,
    pub(super) what: String,
}

/// The template does not fit the report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: format: {0}")]
pub struct RenderError(pub(super) String);
