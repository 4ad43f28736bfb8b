//! Go's `text/template` over a report, for `weave report -f` (docs/spec/cli.md 9).
//!
//! Fields, `len`, `index`, `json`, `print`, `printf`, `println`, comparison and logic, `if`, `with`, `range`, variables,
//! pipelines, comments and trim markers, with Go's way of printing values. Not there: `define`, `template`, `block`,
//! `call`, `slice`, `html`, `js`, `urlquery`.

mod exec;
mod lex;
mod parse;
mod print;
mod value;

use crate::Report;

/// A template that was understood.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<parse::Node>,
}

/// The template cannot be understood. Go's wording: `template: format:1: unclosed action`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: format:{line}: {what}")]
pub struct ParseError {
    line: usize,
    what: String,
}

/// The template does not fit the report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: format: {0}")]
pub struct RenderError(String);

impl Template {
    /// Takes a template apart.
    ///
    /// # Errors
    /// See [`ParseError`].
    pub fn parse(text: &str) -> Result<Template, ParseError> {
        Ok(Template { nodes: parse::parse(text)? })
    }

    /// Evaluates it over `report`.
    ///
    /// # Errors
    /// A field that does not exist, a function that cannot take its arguments.
    pub fn render(&self, report: &Report) -> Result<String, RenderError> {
        exec::render(&self.nodes, &value::of(report))
    }
}
